"""CPU implementations."""
