"""Train smoke control with L-BFGS."""

from experiments import submit
from problems import SmokeControl

if __name__ == "__main__":
    submit(SmokeControl(), "lbfgs")
