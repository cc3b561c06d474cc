"""Helpers for torch that know nothing of half-inverse gradients."""
