"""Layers over torch that know nothing of half-inverse gradients."""
