"""Recordings of a server's requests: sent again, and compared with each other."""
