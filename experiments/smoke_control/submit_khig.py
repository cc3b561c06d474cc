"""Train smoke control with half-inverse gradients in Kronecker factors."""

from experiments import submit
from problems import SmokeControl

if __name__ == "__main__":
    submit(SmokeControl(), "khig")
