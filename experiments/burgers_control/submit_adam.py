"""Train the control of Burgers' equation with Adam."""

from experiments import submit
from problems import BurgersControl

if __name__ == "__main__":
    submit(BurgersControl(), "adam")
