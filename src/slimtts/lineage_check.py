"""Which data, teacher and student a workspace really holds: their hashes, taken again from the bytes.

`python -m slimtts.lineage_check WORKSPACE` prints them as JSON; a problem is one line on stderr.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from slimtts.errors import SlimttsError
from slimtts.workspace import Workspace


def observed_hashes(workspace: Workspace) -> dict[str, str]:
    """SHA-256 of `data`, `teacher` and `student`, as a lineage names them.

    Raises:
        InvalidInputError: one of them is not there.
    """
    from slimtts.data.manifest import data_sha256
    from slimtts.errors import InvalidInputError
    from slimtts.params import load_params
    from slimtts.teachers.checkpoint import hash_weights
    from slimtts.teachers.loading import load_teacher

    try:
        data = data_sha256(workspace.data)
    except FileNotFoundError as error:
        raise InvalidInputError(
            f"data {workspace.data}", f"no {Path(error.filename).name}", "every split", "restore it again"
        ) from None
    return {
        "data": data,
        "teacher": load_teacher(load_params(workspace.params).teacher, with_model=False).weights_sha256,
        "student": hash_weights(workspace.student / "student"),
    }


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        print(json.dumps(observed_hashes(Workspace(Path(sys.argv[1])))))
    except SlimttsError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
