"""Train the control of Burgers' equation with Muon, with AdamW for the biases."""

from experiments import submit
from problems import BurgersControl

if __name__ == "__main__":
    submit(BurgersControl(), "muon")
