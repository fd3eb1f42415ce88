"""What is measured of a service, what follows, and who is told."""
