"""Device-side state, model execution and sampling."""
