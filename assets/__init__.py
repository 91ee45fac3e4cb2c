"""Files shipped with the package, among them the demo model."""
