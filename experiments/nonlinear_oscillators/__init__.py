"""Training runs on the chain of nonlinear oscillators."""
