"""What is written down for the next daemon."""
