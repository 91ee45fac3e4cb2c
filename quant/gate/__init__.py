"""Quantizes a checkpoint, measures it against the original with the engine, and keeps it or does not."""
