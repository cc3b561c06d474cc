"""Train smoke control with Muon, with AdamW for the biases."""

from experiments import submit
from problems import SmokeControl

if __name__ == "__main__":
    submit(SmokeControl(), "muon")
