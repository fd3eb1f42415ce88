"""Engines to try the project with: `simulated` (no model at all) and `mlx_engine` (a real one, tiny)."""
