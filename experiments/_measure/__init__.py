"""What the commands measure: steps, their parts, other packages, sizes."""
