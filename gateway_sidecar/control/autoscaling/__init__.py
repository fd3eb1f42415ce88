"""What is measured of a service, the recommendation that follows, and the hook that receives it."""
