"""Whether this machine and this installation have what sgl needs, and what to do where they have not."""
