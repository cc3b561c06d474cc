"""Training runs on smoke control."""
