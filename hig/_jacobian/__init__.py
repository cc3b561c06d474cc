"""Joint Jacobian of a forward pass: Gram matrix and products, on one process or many."""
