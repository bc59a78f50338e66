"""Servers and storage: the real stack without Docker (`infra.stack`), images, and descriptions for clusters."""
