"""Captures and trace analysis, tuned tables."""
