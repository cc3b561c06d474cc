"""Train the Poisson source problem with half-inverse gradients in Kronecker factors."""

from experiments import submit
from problems import PoissonSource

if __name__ == "__main__":
    submit(PoissonSource(), "khig")
