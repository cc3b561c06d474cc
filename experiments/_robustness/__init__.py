"""Runs of many seeds on several problems: one run, many side by side, their table."""
