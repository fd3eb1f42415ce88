"""Where requests wait while nobody can answer them."""
