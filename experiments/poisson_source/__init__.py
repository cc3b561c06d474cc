"""Training runs on the Poisson source problem."""
