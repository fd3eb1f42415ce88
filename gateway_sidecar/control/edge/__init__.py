"""What stands between clients, routers and engines: nginx's processes, addresses and keys."""
