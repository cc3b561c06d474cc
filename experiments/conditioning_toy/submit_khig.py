"""Train the toy problem on conditioning with half-inverse gradients in Kronecker factors."""

from experiments import submit
from problems import ConditioningToy

if __name__ == "__main__":
    submit(ConditioningToy(), "khig")
