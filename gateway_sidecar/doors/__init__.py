"""What front doors need beside nginx's configuration: keys and certificates, read with care, put where nginx looks."""
