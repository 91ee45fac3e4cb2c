"""Ops with a reference and their device implementations."""
