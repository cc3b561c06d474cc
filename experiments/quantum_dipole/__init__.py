"""Training runs on the quantum dipole."""
