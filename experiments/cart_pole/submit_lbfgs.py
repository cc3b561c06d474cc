"""Train the cart-pole problem with L-BFGS."""

from experiments import submit
from problems import CartPole

if __name__ == "__main__":
    submit(CartPole(), "lbfgs")
