"""What every implementation of an op is checked with; a server never imports it."""
