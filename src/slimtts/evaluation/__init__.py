"""Measuring speech: words, voices, naturalness, speed."""
