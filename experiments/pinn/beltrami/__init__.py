"""Training on Beltrami flow."""
