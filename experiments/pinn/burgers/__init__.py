"""Training on Burgers' equation."""
