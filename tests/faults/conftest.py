"""Faults are tried on the same toy pipeline as the flows."""

from tests.flows.conftest import started, toy_checkout, toy_workspace  # noqa: F401
