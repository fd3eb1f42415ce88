"""From a socket that is seen to a worker that serves, and back."""
