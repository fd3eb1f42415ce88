"""Keeps an LLM router in step with engine replicas that come and go behind Unix sockets."""

from importlib.metadata import version

__version__ = version("gateway-sidecar")
