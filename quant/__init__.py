"""Quantization schemes, calibration and checkpoint writers."""
