"""Train the control of Burgers' equation with half-inverse gradients in Kronecker factors."""

from experiments import submit
from problems import BurgersControl

if __name__ == "__main__":
    submit(BurgersControl(), "khig")
