"""Command lines: the parser, argument types, a training run, the catalogue of problems."""
