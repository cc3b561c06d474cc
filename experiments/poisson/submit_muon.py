"""Train the inverse of the Laplacian with Muon, with AdamW for the biases."""

from experiments import submit
from problems import Poisson

if __name__ == "__main__":
    submit(Poisson(), "muon")
