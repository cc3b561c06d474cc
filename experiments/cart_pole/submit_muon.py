"""Train the cart-pole problem with Muon, with AdamW for the biases."""

from experiments import submit
from problems import CartPole

if __name__ == "__main__":
    submit(CartPole(), "muon")
