from pathlib import Path

import pytest

from tests.flows.conftest import toy_checkout  # noqa: F401

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.stack)


@pytest.fixture
def clients_of(stack, monkeypatch):
    """The environment of a client of the stack, in this process."""
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    return stack


@pytest.fixture
def s3(clients_of):
    from tasks.bucket import s3_client

    return s3_client("")
