"""Train the cart-pole problem with Levenberg–Marquardt steps."""

from experiments import submit
from problems import CartPole

if __name__ == "__main__":
    submit(CartPole(), "lm")
