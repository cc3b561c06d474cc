"""Measurements of the commands: steps, their parts, other packages, sizes."""
