"""Train a solution of Beltrami flow with PCGrad (published settings)."""

from experiments import submit
from problems.pinn import Beltrami

if __name__ == "__main__":
    submit(Beltrami(), "pcgrad")
