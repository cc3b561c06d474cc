"""Filters of singular values, and the decompositions that apply them."""
