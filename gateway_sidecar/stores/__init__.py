"""What several gateways share: one folder for each kind of store."""
