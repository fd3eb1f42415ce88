"""The router's process, its workers, and the replacement of one router by another."""
