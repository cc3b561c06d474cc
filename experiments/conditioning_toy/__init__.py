"""Training runs on the toy problem on conditioning."""
