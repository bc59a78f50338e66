"""Makes MLflow's user who reads and changes nothing, for the speech service: `python -m infra.make_reader`.

Reads MLFLOW_READER_USERNAME and MLFLOW_READER_PASSWORD, and the administrator's login from MLFLOW_TRACKING_*. A second
call renews the password.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from slimtts.errors import InvalidInputError
from tasks.server_errors import exit_code

ROLE = "reader"
READABLE = ("experiment", "registered_model")  # runs, artifacts and versions belong to these


def make_reader(environment: Mapping[str, str] = os.environ) -> None:
    """A role that may read every run and model, and a user who has only this one.

    Raises:
        InvalidInputError: a variable is missing, or the user is an administrator.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.client import AuthServiceClient
    from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME

    names = ("MLFLOW_TRACKING_URI", "MLFLOW_READER_USERNAME", "MLFLOW_READER_PASSWORD")
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise InvalidInputError("environment", f"no {', '.join(missing)}", ", ".join(names), "set them in infra/.env")
    address, user, password = (environment[name] for name in names)
    client = AuthServiceClient(address)
    try:
        known = client.get_user(user)
    except MlflowException:
        known = client.create_user(user, password)
    if known.is_admin:
        raise InvalidInputError("MLFLOW_READER_USERNAME", f"{user}, an administrator", "another user", "choose another")
    client.update_user_password(user, password)
    roles = {role.name: role for role in client.list_roles(DEFAULT_WORKSPACE_NAME)}
    role = roles.get(ROLE) or client.create_role(DEFAULT_WORKSPACE_NAME, ROLE, "reads runs and models")
    granted = {permission.resource_type for permission in client.list_role_permissions(role.id)}
    for kind in READABLE:
        if kind not in granted:
            client.add_role_permission(role.id, kind, "*", "READ")
    if ROLE not in {assigned.name for assigned in client.list_user_roles(user)}:
        client.assign_role(user, role.id)


def main() -> int:
    """Exit code: 0 done, 1 the server refuses, 2 something that only you can mend."""

    def work() -> int:
        make_reader()
        return 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
