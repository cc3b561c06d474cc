"""Train smoke control with Gauss–Newton steps."""

from experiments import submit
from problems import SmokeControl

if __name__ == "__main__":
    submit(SmokeControl(), "gn")
