"""Types of the flows' parameters: what Prefect's form offers, and what its server refuses before a run is made."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from tasks.workspace import profile_names


class _Profiles:
    """Offers the files of flows/profiles; read when a form is made, so that a new file is offered by the next deploy.

    Not an enum: the code that a run is pinned to may hold others, and its own error message names them.
    """

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": profile_names()}


# {date} and {id} are of the flow run: they stay when it goes on after a crash.
RunName = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9]|\{date\}|\{id\})([A-Za-z0-9._-]|\{date\}|\{id\})*$", max_length=100)
]
Profile = Annotated[str, _Profiles()]
Override = Annotated[str, Field(pattern=r"^\s*\w+\.\w+\s*=")]
Depth = Annotated[int, Field(ge=1, le=1000)]


def fill_name(template: str) -> str:
    """`nightly-{date}-{id}` -> `nightly-2026-01-31-1a2b3c4d`: the day (UTC) that the run was due, and its flow run.

    Both stay the same when the run goes on in another process or on another machine.
    """
    from prefect.runtime import flow_run

    if "{" not in template:
        return template
    due = flow_run.scheduled_start_time.strftime("%Y-%m-%d")
    return template.replace("{date}", due).replace("{id}", str(flow_run.id)[:8])


def filled_name() -> str:
    """The name that Prefect shows for a flow run: its parameter `name`, filled in."""
    from prefect.runtime import flow_run

    return fill_name(flow_run.parameters["name"])
