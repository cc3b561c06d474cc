"""Training runs on the control of a reaction with diffusion."""
