"""Generation of speech codes."""
