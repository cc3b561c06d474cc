"""Training runs on the cart-pole problem."""
