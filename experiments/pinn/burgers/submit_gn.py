"""Train a solution of Burgers' equation with Gauss–Newton."""

from experiments import submit
from problems.pinn import Burgers

if __name__ == "__main__":
    submit(Burgers(), "gn")
