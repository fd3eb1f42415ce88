"""Where requests wait while no router or replica can answer them."""
