"""Removal of layers: plan, then surgery."""
