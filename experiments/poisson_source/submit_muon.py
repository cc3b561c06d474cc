"""Train the Poisson source problem with AdamW for the biases."""

from experiments import submit
from problems import PoissonSource

if __name__ == "__main__":
    submit(PoissonSource(), "muon")
