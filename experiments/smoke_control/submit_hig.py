"""Train smoke control with HIG."""

from experiments import submit
from problems import SmokeControl

if __name__ == "__main__":
    submit(SmokeControl(), "hig")
