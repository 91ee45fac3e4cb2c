"""Layers and the decoder skeleton; never names a family."""
