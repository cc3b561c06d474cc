"""Train a solution of Burgers' equation with Levenberg–Marquardt."""

from experiments import submit
from problems.pinn import Burgers

if __name__ == "__main__":
    submit(Burgers(), "lm")
