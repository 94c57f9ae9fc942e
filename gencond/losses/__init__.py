"""Features -> scalar: one term, one file."""
