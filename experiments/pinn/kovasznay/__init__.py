"""Training on Kovasznay flow."""
