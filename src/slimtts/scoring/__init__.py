"""Which layers matter."""
