"""Differentiable simulators: time loops with cheap Jacobians, simulators outside torch."""
