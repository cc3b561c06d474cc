"""Train a solution of Burgers' equation with Adam (published settings)."""

from experiments import submit
from problems.pinn import Burgers

if __name__ == "__main__":
    submit(Burgers(), "adam")
