"""Training on the forty attributes of CelebA."""
