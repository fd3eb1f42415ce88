"""Replicas elsewhere: SSH forwards that the daemon opens, keeps and takes up again."""
