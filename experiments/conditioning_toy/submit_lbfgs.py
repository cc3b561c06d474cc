"""Train the toy problem on conditioning with L-BFGS."""

from experiments import submit
from problems import ConditioningToy

if __name__ == "__main__":
    submit(ConditioningToy(), "lbfgs")
