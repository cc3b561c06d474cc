"""Train a solution of Burgers' equation with LRA (published settings)."""

from experiments import submit
from problems.pinn import Burgers

if __name__ == "__main__":
    submit(Burgers(), "lra")
