"""Figures drawn from result files alone: `python -m plots.<figure> RESULTS... --out figure.png`."""
