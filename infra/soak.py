"""Kills whatever runs, at random moments over the whole pipeline, and compares each end with an undisturbed run.

python -m infra.soak --kills 50

A stack of its own (PostgreSQL, S3, MLflow, Prefect) on free ports; the bundled teacher, briefly healed. One fault a
turn: SIGKILL to the flow, DVC, the stage or a server, or PostgreSQL or S3 stopped for a minute. A flow that ended is
started again with the same command, as a person or a schedule would. A round is over when the flow ends well; then its
results must equal those of the undisturbed run, with one registered version, one promotion, and no process left. Ends
with a table, exit code 1 if anything was lost. In a folder of a former soak the undisturbed run is taken from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import yaml

from infra.stack.layout import DVC_BUCKET, Layout, Ports, free_ports
from infra.stack.session import Stack, running_stack
from slimtts.errors import SlimttsError
from tasks.team_gate import GATE_FILE

CHECKOUT = Path(__file__).resolve().parents[1]
RUN = "soaked"  # name of the run in every round's own runs folder
SERVERS = ("postgres", "s3", "mlflow", "prefect")
OUTAGES = {"postgres away": "postgres", "s3 away": "s3"}
OUTAGE_S = 60.0
OUTAGE_WEIGHT = 0.25  # of a kill: each takes a minute
MOST_PAUSE_S = 40.0  # between two faults
KINDS = ("flow", "dvc", "stage", *SERVERS, *OUTAGES)
STEPS, CHECKPOINT_EVERY = 12, 3
ATTEMPTS = 40  # starts of one round's flow before it counts as lost
FLOW_TIMEOUT_S = 1800.0
GONE_WITHIN_S = 20.0
SETTINGS = {
    "subset_data.selection_utterances": 8, "subset_data.test_utterances": 12, "subset_data.extra_texts": 8,
    "subset_data.speech": "both", "subset_data.max_share": 0.001,
    "score_layers.method": "wli", "score_layers.utterances": 4, "score_layers.bootstrap_samples": 50,
    "distill_student.steps": STEPS, "distill_student.checkpoint_every_steps": CHECKPOINT_EVERY,
    "distill_student.tokens_per_step": 1024,
    "evaluate_student.utterances": 12, "evaluate_student.mos_utterances": 2, "evaluate_student.speed_utterances": 1,
    "evaluate_student.bootstrap_samples": 50,
    "storage.dvc_remote": f"s3://{DVC_BUCKET}/soak",
}  # fmt: skip
# Any student passes it: promotion is part of what must happen exactly once.
GATE = {
    "min_utterances": 1, "max_wer_gap_upper_points": 10000, "max_similarity_drop": 2, "max_mos_drop_upper": 5,
    "max_no_end_rate": 1, "min_speedup": 0.01,
}  # fmt: skip


@dataclass
class Round:
    """One pipeline run from nothing to a promoted version, started as often as it takes."""

    number: int
    folder: Path
    environment: Mapping[str, str]
    starts: int = 0
    started_at: float = 0.0
    flow: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def model_name(self) -> str:
        """A registry entry of its own, so that versions can be counted."""
        return f"soak-{self.number}"

    @property
    def workspace(self) -> Path:
        """The run's folder."""
        return self.folder / RUN

    def start(self) -> None:
        """Starts the flow, the same command every time."""
        settings = {**SETTINGS, "register_model.model_name": self.model_name}
        options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        self.folder.mkdir(parents=True, exist_ok=True)
        gate = self.folder / "gate.yaml"
        gate.write_text(yaml.safe_dump(GATE))
        with (self.folder / "flow.log").open("ab") as log:
            self.flow = subprocess.Popen(
                [sys.executable, "-m", "flows.compress_model", "--name", RUN, "--runs", str(self.folder), *options],
                cwd=CHECKOUT, env={**self.environment, GATE_FILE: str(gate)}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        self.starts += 1
        self.started_at = time.monotonic()

    def abandon(self) -> None:
        """Ends the flow, if it runs."""
        if self.flow is not None and self.flow.poll() is None:
            self.flow.kill()

    def ended(self) -> int | None:
        """Exit code of the flow, None while it runs.

        Raises:
            SlimttsError: it has run for far too long.
        """
        if self.flow is None:
            return 0
        code = self.flow.poll()
        if code is None and time.monotonic() - self.started_at > FLOW_TIMEOUT_S:
            raise SlimttsError(f"round {self.number}: observed no end after {FLOW_TIMEOUT_S:g} s; read {self.folder}")
        return code

    def victims(self) -> dict[str, int]:
        """What runs for this round, by kind: the flow, its DVC, its stage."""
        if self.flow is None or self.flow.poll() is not None:
            return {}
        found = {"flow": self.flow.pid}
        for process in psutil.Process(self.flow.pid).children(recursive=True):
            try:
                words = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if any(Path(word).name == "slimtts" for word in words[:2]):
                found["stage"] = process.pid
            elif "dvc" in words[:4] and "-I" not in words:
                found["dvc"] = process.pid
        return found


def left_running(folder: Path) -> list[str]:
    """Processes that still work in `folder`, after some time to die."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while True:
        left = []
        for process in psutil.process_iter(["pid", "cmdline", "cwd", "status"]):
            words, cwd = process.info["cmdline"] or [], process.info["cwd"] or ""
            if process.info["status"] != psutil.STATUS_ZOMBIE and (
                str(folder) in cwd or any(str(folder) in word for word in words)
            ):
                left.append(f"{process.info['pid']} {' '.join(words)[:80]}")
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def results_of(workspace: Path) -> dict[str, str]:
    """Everything that may not depend on how often a run was killed, by name."""
    students = json.loads((workspace / "student" / "report.json").read_text())
    evaluation = json.loads((workspace / "evaluation" / "evaluation.json").read_text())
    for system in evaluation["systems"].values():
        del system["speed"]
    curves = [json.loads(line) for line in (workspace / "student" / "student.jsonl").read_text().splitlines()]
    return {
        "data": _digest(*sorted((workspace / "data").glob("*.jsonl"))),
        "scores": _digest(workspace / "scores" / "scores.json"),
        "plan": _digest(workspace / "pruned" / "plan.json"),
        "student": students["student"]["weights_sha256"],
        "control": students["control"]["weights_sha256"],
        "curves": json.dumps([(row["step"], row["loss"]) for row in curves]),
        "transcripts": _digest(workspace / "evaluation" / "utterances.jsonl"),
        "evaluation": json.dumps(evaluation, sort_keys=True),
    }


def _digest(*paths: Path) -> str:
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()


def faults_of(round_: Round, expected: Mapping[str, str] | None) -> list[str]:
    """What a finished round lost or doubled; empty when all is well."""
    observed = results_of(round_.workspace)
    faults = [
        f"{name} differs from the undisturbed run" for name in observed if expected and observed[name] != expected[name]
    ]
    steps = [step for step, _ in json.loads(observed["curves"])]
    if steps != list(range(STEPS)):
        faults.append(f"curves hold steps {steps}")
    faults += [f"left running: {line}" for line in left_running(round_.folder)]
    faults += [f"half written: {path.name}" for path in round_.workspace.iterdir() if path.name.startswith(".tmp")]
    return faults + registry_faults(round_)


def registry_faults(round_: Round) -> list[str]:
    """Whether there is one version, in production, and one promotion in the history."""
    from tasks.promotion_log import PromotionLog
    from tasks.tracking import mlflow_client

    client = mlflow_client(round_.environment["MLFLOW_TRACKING_URI"])
    seen = PromotionLog(client, round_.folder, round_.model_name).read()
    versions = client.search_model_versions(f"name = '{round_.model_name}'")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    named = f"params.`register_model.model_name` = '{round_.model_name}'"
    runs = client.search_runs(experiments, filter_string=named)
    observed = {
        "versions": len(versions),
        "in production": seen.production,
        "promotions": sum(event.action == "promoted" for event in seen.events),
        "events": len(seen.events),
        "MLflow runs": len(runs),
        "finished MLflow runs": sum(run.info.status == "FINISHED" for run in runs),
    }
    wanted = {
        "versions": 1, "in production": "1", "promotions": 1, "events": 1, "MLflow runs": 1, "finished MLflow runs": 1,
    }  # fmt: skip
    return [f"{name}: {observed[name]}, not {value}" for name, value in wanted.items() if observed[name] != value]


def strike(round_: Round, stack: Stack, kinds: Sequence[str], rng: random.Random) -> str:
    """Kills one thing of a random kind that runs now; returns what it was."""
    present = round_.victims()
    possible = [kind for kind in kinds if kind in present or kind in SERVERS or kind in OUTAGES]
    (kind,) = rng.choices(possible, [OUTAGE_WEIGHT if kind in OUTAGES else 1.0 for kind in possible])
    if kind in OUTAGES:
        stack.hold(OUTAGES[kind])
        time.sleep(OUTAGE_S)
        stack.release(OUTAGES[kind])
        return kind
    if kind in SERVERS:
        stack.kill(kind)
        return kind
    stage = ""
    try:
        if kind == "stage":
            stage = f" {psutil.Process(present[kind]).cmdline()[2]}"
        os.kill(present[kind], signal.SIGKILL)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return ""
    return kind + stage


def finish(round_: Round, stack: Stack) -> None:
    """Lets the round end without further kills.

    Raises:
        SlimttsError: it does not end well.
    """
    while True:
        code = round_.ended()
        if code == 0 and round_.flow is not None:
            return
        if code is not None:
            restart(round_, stack)
        time.sleep(0.5)


def restart(round_: Round, stack: Stack) -> None:
    """Starts the flow again once all servers are back.

    Raises:
        SlimttsError: it was started far too often.
    """
    if round_.starts >= ATTEMPTS:
        raise SlimttsError(f"round {round_.number}: {round_.starts} starts were not enough; read {round_.folder}")
    for server in SERVERS:
        stack.wait_healthy(server)
    round_.start()


@contextmanager
def closing_round(round_: Round) -> Iterator[None]:
    """Leaves no flow behind."""
    try:
        yield
    finally:
        round_.abandon()


def disturb(
    round_: Round, stack: Stack, kills: int, kinds: Sequence[str], rng: random.Random, struck: Counter[str],
) -> None:  # fmt: skip
    """Strikes at random moments until the round is over or there were enough `kills`; counts them in `struck`."""
    while sum(struck.values()) < kills:
        if round_.ended() is not None:
            if round_.flow is not None and round_.ended() == 0:
                return
            restart(round_, stack)
        moment = time.monotonic() + rng.uniform(0, MOST_PAUSE_S)
        while time.monotonic() < moment and round_.ended() is None:
            time.sleep(0.05)
        if round_.ended() is None and (what := strike(round_, stack, kinds, rng)):
            struck[what] += 1
            told = f"round {round_.number}, start {round_.starts}: fault {sum(struck.values())}, {what}"
            print(told, flush=True)


def same_ports(path: Path) -> Ports:
    """The ports of the first soak in this folder: runs know their servers by address."""
    if not path.exists():
        path.write_text(json.dumps(asdict(free_ports())))
    return Ports(**json.loads(path.read_text()))


def soak(stack: Stack, folder: Path, kills: int, kinds: Sequence[str], rng: random.Random) -> int:
    """Number of faults after so many kills."""
    os.environ.update(stack.environment)  # the registry is asked from here too
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    calm = Round(0, folder / "round-0", environment)
    with closing_round(calm):
        calm.start()
        finish(calm, stack)
    print(f"undisturbed: {time.monotonic() - calm.started_at:.0f} s", flush=True)
    faults = [f"undisturbed: {fault}" for fault in faults_of(calm, None)]
    expected = results_of(calm.workspace)
    struck: Counter[str] = Counter()
    before = rounds = len(list(folder.glob("round-*"))) - 1
    while sum(struck.values()) < kills:
        rounds += 1
        round_ = Round(rounds, folder / f"round-{rounds}", environment)
        with closing_round(round_):
            disturb(round_, stack, kills, kinds, rng, struck)
            finish(round_, stack)
        found = faults_of(round_, expected)
        faults += [f"round {rounds}: {fault}" for fault in found]
        print(f"round {rounds}: {round_.starts} starts; {'; '.join(found) or 'nothing lost'}", flush=True)
    print("\n| killed | times |\n|---|---|")
    for what, times in sorted(struck.items()):
        print(f"| {what} | {times} |")
    print(f"\n{sum(struck.values())} faults in {rounds - before} rounds: {len(faults)} things lost or doubled")
    for fault in faults:
        print(f"LOST {fault}")
    return len(faults)


def main() -> int:
    """Exit code: 0 nothing lost, 1 something was."""
    parser = argparse.ArgumentParser(prog="python -m infra.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=CHECKOUT / "runs" / "soak", help="goes on where one was")
    parser.add_argument(
        "--kinds", nargs="+", default=["flow", "dvc", "stage", *SERVERS, *OUTAGES], help="what may be killed"
    )
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the stack stops
    try:
        with running_stack(Layout(folder / "stack", same_ports(folder / "ports.json"))) as stack:
            return 1 if soak(stack, folder, options.kills, options.kinds, random.Random(options.seed)) else 0
    except SlimttsError as error:
        print(f"slimtts: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
