"""Training runs on the Poisson problem."""
