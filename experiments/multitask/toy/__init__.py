"""Training on the toy problem of two losses."""
