"""From a socket to a serving worker, and back."""
