"""A person in the loop, on a real Prefect server: asked, asked again, agreed, refused, silent; paused and suspended."""

import asyncio
import time
from contextvars import copy_context
from threading import Thread

import pytest

from slimtts.errors import InvalidInputError
from tasks.registry import register_release
from tests.flows.toy_release import MODEL, events, production, promotions, set_gate, toy_release

YES = {"approve": True, "reason": "sounds right", "approver": "ann"}


@pytest.fixture
def proposed(runs_root, prefect_server, monkeypatch):
    """Version 1 in production, version 2 accepted by a gate that wants a person; gives the run of version 2."""
    monkeypatch.setenv("SLIMTTS_GIT_SHA", "abc")
    monkeypatch.setenv("SLIMTTS_ACTOR", "nightly")
    first, second = toy_release(runs_root, "a"), toy_release(runs_root, "b", seed=2)
    register_release(first, promote=True)
    set_gate(second, approval="required")
    register_release(second, promote=True)
    assert events(second) == ["promoted", "proposed"]
    assert production(second) == "1"
    return second


@pytest.fixture
def client(prefect_server):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


def _in_background(run, **parameters):
    """promote_model of version 2 in a thread: it blocks while it waits for a person."""
    from flows.promote_model import promote_model

    overrides = ["register_model.approval=required"]
    arguments = {"version": "2", "overrides": overrides, "runs_root": run.workspace.parent, **parameters}
    thread = Thread(
        target=copy_context().run, args=(promote_model,), kwargs={**arguments, "return_state": True}, daemon=True
    )
    thread.start()
    return thread


def _waiting_run(client, name="promote version 2"):
    """The flow run that has asked; waits until it has."""
    from prefect.client.schemas.filters import FlowRunFilter

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        paused = FlowRunFilter.model_validate({"name": {"any_": [name]}, "state": {"type": {"any_": ["PAUSED"]}}})
        found = client.read_flow_runs(flow_run_filter=paused)
        if found and _form(client, found[0].id):
            return found[0].id
        time.sleep(0.2)
    raise AssertionError("nobody was asked")


def _form(client, flow_run_id):
    """True when the form that the UI shows is there; it comes right after the state."""
    answer = client.request("POST", f"/flow_runs/{flow_run_id}/input/filter", json={"prefix": "", "limit": 20})
    return any(entry["key"].endswith("-description") for entry in answer.json())


def _answer(client, flow_run_id, answer):
    return client.resume_flow_run(flow_run_id, run_input=answer).status.value


def test_only_a_complete_yes_moves_production(proposed, client):
    flow = _in_background(proposed)
    run_id = _waiting_run(client)
    for bad in ({}, {"approve": True}, {**YES, "reason": "  "}, {**YES, "approver": ""}, {**YES, "approve": "maybe"}):
        assert _answer(client, run_id, bad) == "REJECT"
        assert client.read_flow_run(run_id).state.is_paused(), "the question stays open"
    assert production(proposed) == "1"
    assert _answer(client, run_id, YES) == "ACCEPT"
    flow.join(60)
    assert production(proposed) == "2"
    last = promotions(proposed).log.read().events[-1]
    assert (last.action, last.actor, last.reason, last.former_version) == ("promoted", "ann", "sounds right", "1")
    assert last.flow_run == str(run_id)
    assert events(proposed) == ["promoted", "proposed", "promoted"]


def test_a_no_is_recorded_and_moves_nothing(proposed, client):
    flow = _in_background(proposed)
    _answer(client, _waiting_run(client), {"approve": False, "reason": "it clicks", "approver": "ann"})
    flow.join(60)
    last = promotions(proposed).log.read().events[-1]
    assert (last.action, last.actor, last.reason) == ("declined", "ann", "it clicks")
    assert production(proposed) == "1"


def test_silence_is_recorded_and_moves_nothing(proposed, client):
    promotions(proposed).decline("2", promotions_request())
    flow = _in_background(
        proposed, overrides=["register_model.approval=required", "register_model.approval_hours=0.001"]
    )
    run_id = _waiting_run(client)
    flow.join(60)
    assert events(proposed) == ["promoted", "proposed", "declined", "proposed", "expired"]
    assert production(proposed) == "1"
    assert _answer(client, run_id, YES) == "ABORT", "too late"


def promotions_request():
    from tasks.promotion import Request

    return Request("nightly", "first listen", approver="ann")


def test_a_worker_is_not_kept_waiting(proposed, client, monkeypatch):
    """The compression starts a run of the deployment, once; it is suspended, and goes on with the answer."""
    from prefect.flow_engine import run_flow

    from flows.promote_model import promote_model
    from slimtts.params import load_params
    from tasks.approval import request_approval

    gate = load_params(proposed.workspace / "params.yaml").register_model
    told = request_approval(promotions(proposed), "2", gate)
    assert told == "version 2 waits for a person; no deployment promote-model/promote, so: slimtts promote 2"
    deployment = asyncio.run(_deploy())
    try:
        told = [request_approval(promotions(proposed), "2", gate) for _ in range(2)]
        assert told[0] == told[1], "asked once"
        run_id = told[0].rpartition("(")[2].rstrip(")")
        _run_until_suspended(client, run_id)
        assert _answer(client, run_id, {**YES, "approver": " "}) == "REJECT"
        assert _answer(client, run_id, YES) == "ACCEPT"
        flow_run = client.read_flow_run(run_id)
        assert flow_run.state.is_scheduled()
        state = run_flow(promote_model, flow_run=flow_run, parameters=flow_run.parameters, return_type="state")
        assert state.is_completed()
    finally:
        client.delete_deployment(deployment)
    assert events(proposed) == ["promoted", "proposed", "promoted"]
    last = promotions(proposed).log.read().events[-1]
    assert (last.version, last.actor) == ("2", "ann")


def _run_until_suspended(client, run_id):
    """Runs it as a worker's process does, which ends here."""
    from prefect.exceptions import Pause
    from prefect.flow_engine import run_flow

    from flows.promote_model import promote_model

    flow_run = client.read_flow_run(run_id)
    with pytest.raises(Pause):
        run_flow(promote_model, flow_run=flow_run, parameters=flow_run.parameters)
    state = client.read_flow_run(run_id).state
    assert (state.type.value, state.name) == ("PAUSED", "Suspended")


async def _deploy():
    from flows.promote_model import promote_model

    return await (await promote_model.ato_deployment("promote")).aapply()


def test_a_run_that_died_while_it_waited_asks_again(proposed, client):
    """Its state says Running again after a recovery, and its first question was never answered."""
    from prefect.flow_engine import run_flow
    from prefect.states import AwaitingRetry

    from flows.promote_model import promote_model

    deployment = asyncio.run(_deploy())
    try:
        parameters = {
            "version": "2", "overrides": ["register_model.approval=required"],
            "runs_root": str(proposed.workspace.parent),
        }  # fmt: skip
        flow_run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
        _run_until_suspended(client, flow_run.id)
        client.set_flow_run_state(flow_run.id, AwaitingRetry(), force=True)
        _run_until_suspended(client, flow_run.id)
        assert _answer(client, flow_run.id, YES) == "ACCEPT"
        run_flow(promote_model, flow_run=client.read_flow_run(flow_run.id), parameters=parameters, return_type="state")
    finally:
        client.delete_deployment(deployment)
    assert production(proposed) == "2"
    assert events(proposed) == ["promoted", "proposed", "promoted"]


def test_without_a_server_nobody_could_be_asked(proposed):
    from tasks.approval import ask

    with pytest.raises(InvalidInputError, match=r"register_model\.approval: observed required, without a"):
        ask(promotions(proposed).log.read().events[-1])


def test_the_question_shows_what_the_gate_says(proposed, client):
    flow = _in_background(proposed)
    run_id = _waiting_run(client)
    entries = client.request("POST", f"/flow_runs/{run_id}/input/filter", json={"prefix": "", "limit": 20}).json()
    (question,) = [entry["value"] for entry in entries if entry["key"].endswith("-description")]
    assert f"{MODEL} version 2" in question and "in place of version 1" in question
    assert "The upper 95 % bound of the WER gap is" in question
    _answer(client, run_id, YES)
    flow.join(60)
