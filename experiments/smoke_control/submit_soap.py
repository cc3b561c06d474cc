"""Train smoke control with SOAP."""

from experiments import submit
from problems import SmokeControl

if __name__ == "__main__":
    submit(SmokeControl(), "soap")
