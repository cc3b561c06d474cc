"""Training runs on the control of Burgers' equation."""
