"""Train the toy problem on conditioning with SOAP."""

from experiments import submit
from problems import ConditioningToy

if __name__ == "__main__":
    submit(ConditioningToy(), "soap")
