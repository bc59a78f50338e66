"""Tiny real models for tests: same classes as production, milliseconds to run."""
