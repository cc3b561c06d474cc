"""Training on the nonlinear Schrödinger equation."""
