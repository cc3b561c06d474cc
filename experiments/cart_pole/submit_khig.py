"""Train the cart-pole problem with half-inverse gradients in Kronecker factors."""

from experiments import submit
from problems import CartPole

if __name__ == "__main__":
    submit(CartPole(), "khig")
