"""The router's process, what it says of its workers, and how one takes the place of another."""
