"""Front-end language; imports without torch."""
