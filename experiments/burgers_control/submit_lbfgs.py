"""Train the control of Burgers' equation with L-BFGS."""

from experiments import submit
from problems import BurgersControl

if __name__ == "__main__":
    submit(BurgersControl(), "lbfgs")
