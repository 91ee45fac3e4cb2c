"""How a checkpoint in floating point becomes a quantized one."""
