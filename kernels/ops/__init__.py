"""Op signatures; each body is the plain-torch reference."""
