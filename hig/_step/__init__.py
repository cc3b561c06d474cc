"""One step: from a closure to a direction, and how far to go along it."""
