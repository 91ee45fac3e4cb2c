"""Formats of quantized weights, one file each."""
