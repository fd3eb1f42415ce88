"""nginx's processes, addresses and keys, between clients, routers and engines."""
