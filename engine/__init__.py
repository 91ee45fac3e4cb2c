"""The engine: api, client and loop over core, runtime, models and text."""
