"""One training run, from its settings to its result file."""
