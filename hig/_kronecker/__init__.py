"""KroneckerHIG: the step approximated by two small factors per layer."""
