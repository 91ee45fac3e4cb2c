"""The sgl command: parse, call, print; no logic."""
