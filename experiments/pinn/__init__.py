"""Physics-informed networks, one folder per equation."""
