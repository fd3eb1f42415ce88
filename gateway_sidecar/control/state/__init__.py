"""The records for the next daemon."""
