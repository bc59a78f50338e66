import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def stack():
    """PostgreSQL, S3, MLflow, Prefect and a worker, for the whole session. Whoever kills or holds one, mends it."""
    from infra.stack.layout import Layout, free_ports
    from infra.stack.session import running_stack

    # Not below pytest's own folder: that one is closed to the user that PostgreSQL runs as when root runs the tests.
    folder = Path(tempfile.mkdtemp(prefix="slimtts-stack-", dir="/var/tmp"))
    try:
        with running_stack(Layout(folder, free_ports())) as running:
            yield running
    finally:
        shutil.rmtree(folder)
