"""Train the toy problem on conditioning with Muon, with AdamW for the biases."""

from experiments import submit
from problems import ConditioningToy

if __name__ == "__main__":
    submit(ConditioningToy(), "muon")
