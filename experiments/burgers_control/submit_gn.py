"""Train the control of Burgers' equation with Gauss–Newton steps."""

from experiments import submit
from problems import BurgersControl

if __name__ == "__main__":
    submit(BurgersControl(), "gn")
