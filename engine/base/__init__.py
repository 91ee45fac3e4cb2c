"""Types, configuration, errors, devices, logging; imported by everything, imports nothing of sgl."""
