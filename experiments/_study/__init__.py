"""The study: every method on every problem, from one table of settings."""
