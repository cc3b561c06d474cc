"""Train the cart-pole problem with Gauss–Newton steps."""

from experiments import submit
from problems import CartPole

if __name__ == "__main__":
    submit(CartPole(), "gn")
