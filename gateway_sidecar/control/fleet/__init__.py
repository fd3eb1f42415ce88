"""Several gateways: what this one learns from the store that they share, and what it tells there."""
