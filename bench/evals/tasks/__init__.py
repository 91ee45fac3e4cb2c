"""The tasks: each makes its items and judges what came back; none asks a model anything itself."""
