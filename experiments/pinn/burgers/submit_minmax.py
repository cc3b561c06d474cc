"""Train a solution of Burgers' equation with MinMax (published settings)."""

from experiments import submit
from problems.pinn import Burgers

if __name__ == "__main__":
    submit(Burgers(), "minmax")
