"""Keeps an LLM router in step with engine replicas that come and go behind Unix sockets."""

__version__ = "0.1.0"
