"""What a run will do and cost on this machine, before it starts: units counted, a few of each measured.

Times are units x measured prices, so they follow the teacher, the data and the machine; other work on the machine
makes the truth longer. Legend: L decoder layers.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from slimtts.data.hard_sentences import ENGLISH
from slimtts.data.manifest import Utterance
from slimtts.data.sound_files import BadAudioError
from slimtts.data.speech_source import SpeechSource
from slimtts.data.splits import Candidate
from slimtts.data.subset import Subset
from slimtts.decoding.generation import generate
from slimtts.decoding.teacher_forcing import ForcedBatch, collate, forced_sequence, hidden_states
from slimtts.distill.batches import PairSampler
from slimtts.distill.healing import PRESETS, HealingLoss
from slimtts.distill.training import TrainingJob, pick_device, train
from slimtts.errors import InvalidInputError
from slimtts.evaluation.naturalness import MosPredictor
from slimtts.evaluation.word_meter import WordMeter, open_recognizer
from slimtts.params import DistillStudentParams, Params
from slimtts.pruning.surgery import remove_layers
from slimtts.results import RunEstimate, StageEstimate
from slimtts.run_checks import at_workspace, check_run, model_bytes, nearest_folder
from slimtts.stages.benchmark_set import OWN
from slimtts.stages.distill_student import knobs_of, set_attention
from slimtts.stages.evaluate_student import describe_machine
from slimtts.stages.subset_data import first_choice, open_source, texts_of_the_teacher, unreadable_texts
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.loading import load_teacher
from slimtts.workspace import STAGES

TRIAL_UTTERANCES, TRIAL_STEPS = 16, 3
ALONE = 4  # an utterance spoken alone costs as many in a batch of 16 (nano, two cores, 2026-11-21)
SAMPLE_BYTES = 2  # in a WAV


@dataclass(frozen=True)
class Workload:
    """How much there is to do; durations in seconds of speech."""

    recordings_s: float  # to encode
    texts: int  # that the teacher speaks
    utterance_s: float  # on average
    trial: tuple[Utterance, ...]  # to measure with


@dataclass(frozen=True)
class Prices:
    """Seconds a unit on this machine, and the most memory that the trial took."""

    open_s: float  # to start a stage
    encode: float  # a second of audio
    speak: float  # an utterance of the teacher, spoken beside others, as audio
    hear: float  # an utterance, transcribed
    rate: float  # an utterance's naturalness
    layer: float  # one layer of one known utterance
    student_step: float
    control_step: float
    peak_bytes: int


def estimate(params: Params, root: Path, finished: Collection[str] = ()) -> RunEstimate:
    """The plan of a run in the folder `root`, which need not exist; `finished` stages cost nothing.

    Raises:
        InvalidInputError: what the run itself would refuse, as `slimtts.run_checks` asks.
    """
    root = root.absolute()
    check_run(params, root, finished)
    with at_workspace(params, root) as own:
        return _estimate(own, root, finished)


def _estimate(params: Params, root: Path, finished: Collection[str]) -> RunEstimate:
    started = time.monotonic()
    teacher = load_teacher(params.teacher)
    open_s = time.monotonic() - started
    work = count_work(params, teacher, root)
    prices = measure_prices(params, teacher, work, open_s)
    rows = [
        row.model_copy(update={"seconds": 0.0}) if row.stage in finished else row
        for row in stage_rows(params, teacher, work, prices)
    ]
    return RunEstimate(
        stages=rows,
        finished=[stage for stage in STAGES if stage in finished],
        seconds=sum(row.seconds for row in rows),
        peak_memory_gb=prices.peak_bytes / 1e9,
        disk_gb=disk_bytes(params, teacher, work) / 1e9,
        free_disk_gb=shutil.disk_usage(nearest_folder(root)).free / 1e9,
        machine=describe_machine(torch.get_num_threads()),
        unknown=what_is_not_known(params),
    )


def what_is_not_known(params: Params) -> list[str]:
    """What makes the truth differ from the times, in words; a time that cannot be told is not made up."""
    judging, healing, pruning = params.evaluate_student, params.distill_student, params.prune_layers
    notes = {
        "what MLflow, Prefect and DVC take, and copies to a remote": True,
        "sentences of the benchmark are taken to be as long as those of the data": judging.benchmark != OWN,
        "further takes of a text that the teacher reads with errors": params.subset_data.speech != "corpus"
        and params.subset_data.teacher_takes > 1,
        "layers whose rank is settled early take less": params.score_layers.method == "wli"
        and params.score_layers.early_stop_risk is not None,
        "the measured latency of prune_layers, about a minute": pruning.max_latency_share < 1,
        f"a step is measured with one process, not {healing.processes}": healing.processes > 1,
        "compiling, some minutes": healing.compile == "on" or (healing.compile == "auto" and torch.cuda.is_available()),
        "passes that the teacher's cache saves": bool(healing.teacher_cache),
        "the teacher's further passes under guidance": bool(healing.guidance_text or healing.guidance_voice),
        "making of the student's variants": bool(judging.variants),
    }
    return [note for note, applies in notes.items() if applies]


def count_work(params: Params, teacher: Teacher, root: Path) -> Workload:
    """What the subset would hold; nothing is encoded but a few utterances of the trial."""
    source = open_source(params, teacher, root)
    subset = first_choice(source, teacher, params, unreadable_texts(source, teacher))
    rows = [*subset.train, *subset.selection, *subset.test]
    return Workload(
        recordings_s=sum(row.duration_s for row in rows if row.id in source.recordings),
        texts=texts_to_speak(params, subset, root),
        utterance_s=fmean(row.duration_s for row in rows),
        trial=_trial(subset.train, source, params.subset_data.on_bad_audio == "drop"),
    )


def texts_to_speak(params: Params, subset: Subset, root: Path) -> int:
    """Of the subset, of the further ones, and of the list."""
    if params.subset_data.speech == "corpus":
        return 0
    return len(texts_of_the_teacher(subset, params, root)[0])


def _trial(rows: Iterable[Candidate], source: SpeechSource, drop_bad_audio: bool) -> tuple[Utterance, ...]:
    """The first usable rows with their codes."""
    trial: list[Utterance] = []
    for row in rows:
        if len(trial) == TRIAL_UTTERANCES:
            break
        try:
            trial.append(Utterance(row.id, row.text, row.voice, source.codes_of(row.id), row.duration_s))
        except BadAudioError:
            if not drop_bad_audio:
                raise
    if not trial:
        raise InvalidInputError("subset_data.source", "no recording that can be used", "at least one", "correct it")
    return tuple(trial)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_prices(params: Params, teacher: Teacher, work: Workload, open_s: float) -> Prices:
    """A few real units of each kind."""
    trial, rate_hz = work.trial, teacher.codec.sample_rate_hz
    prompts = [Prompt(u.text, u.codes, u.voice) for u in (*trial[1:], trial[0])]
    ids = [teacher.prompt_ids(u.text, prompt) for u, prompt in zip(trial, prompts, strict=True)]
    waves: list[torch.Tensor] = []

    def speak() -> None:
        spoken = generate(teacher.model, teacher.layout, ids, params.decoding)
        waves.extend(teacher.audio(one.codes) for one in spoken)

    recognizer = open_recognizer(params.recogniser)
    transcribe = WordMeter(params, recognizer).transcriber(rate_hz)
    WordMeter(params.for_evaluation(), recognizer)  # refuses a language that it does not know,
    teacher.family.in_language(params.judged_language)  # and one that the teacher cannot read
    predictor = MosPredictor()
    forced = collate(
        [forced_sequence(teacher, u, prompt) for u, prompt in zip(trial, prompts, strict=True)], teacher.layout.pad_id
    )
    known = [np.asarray(teacher.audio(u.codes)) for u in trial[:2]]
    encode_s = sum(len(wave) for wave in known) / rate_hz
    return Prices(
        open_s=open_s,
        encode=_timed(lambda: [teacher.codec.encode(torch.tensor(wave)[None]) for wave in known]) / encode_s
        if work.recordings_s
        else 0.0,
        speak=_timed(speak) / len(trial),
        hear=_timed(lambda: transcribe(waves)) / len(trial),
        rate=_timed(lambda: predictor.predict(known[:1], rate_hz)),
        layer=_timed(lambda: _forward(teacher, forced)) / len(trial) / teacher.num_layers,
        student_step=_step_s(params, teacher, trial, "student"),
        control_step=_step_s(params, teacher, trial, "control") if params.distill_student.control else 0.0,
        peak_bytes=_peak_bytes(),
    )


@torch.inference_mode()
def _forward(teacher: Teacher, batch: ForcedBatch) -> None:
    hidden_states(teacher.model, batch)


def _step_s(params: Params, teacher: Teacher, trial: Sequence[Utterance], name: str) -> float:
    """Seconds of a training step, the first of which only warms up; nothing is kept of the training."""
    changes = {"steps": TRIAL_STEPS, "checkpoint_every_steps": TRIAL_STEPS + 1, "processes": 1}
    knobs: DistillStudentParams = params.distill_student.model_copy(update=changes)
    device = pick_device(knobs.device)
    preset = PRESETS[knobs.preset].changed(knobs.loss) if name == "student" else PRESETS["cross_entropy"]
    kept = sorted({round(i) for i in np.linspace(0, teacher.num_layers - 1, params.prune_layers.keep_layers)})
    model = remove_layers(teacher.model, kept if name == "student" else range(teacher.num_layers))
    listens = teacher.model.to(device).requires_grad_(False)
    loss = HealingLoss(preset, teacher.layout, listens if name == "student" else None, tuple(kept))
    sampler = PairSampler(teacher, trial, knobs.tokens_per_step, knobs.seed)
    set_attention(model, is_trained=True, knobs=knobs, preset=preset)
    set_attention(listens, is_trained=False, knobs=knobs, preset=preset)
    marks: list[float] = []
    with tempfile.TemporaryDirectory(prefix="slimtts-plan-") as folder:
        job = TrainingJob(name, model, loss, sampler.from_step, Path(folder), "plan", knobs.learning_rate)
        train(job, knobs, device, lambda _: marks.append(time.perf_counter()))
    teacher.model.to("cpu")
    return (marks[-1] - marks[1]) / (len(marks) - 2)


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def stage_rows(params: Params, teacher: Teacher, work: Workload, prices: Prices) -> list[StageEstimate]:
    """Work in words, and its seconds."""
    layers, keep = teacher.num_layers, params.prune_layers.keep_layers
    healing, judging, scoring = params.distill_student, params.evaluate_student, params.score_layers
    lighter, control_steps = len(judging.variants), knobs_of("control", healing).steps
    systems = 3 + healing.control + lighter
    depth = (layers + keep * (2 + lighter) + layers * healing.control) / layers  # of the systems, in teachers
    spoken = f", {work.texts} texts spoken by the teacher" if work.texts else ""
    scored, score_s = _scoring(params, layers, prices)
    rated = min(judging.mos_utterances, judging.utterances)
    sentences = judging.utterances * (1 + (judging.best_of if judging.best_of > 1 else 0))
    sentences += sum(map(len, ENGLISH.values())) if judging.hard_sentences else 0
    speaking = sentences * (prices.speak * depth + prices.hear * systems) + judging.utterances * prices.hear
    speaking += prices.rate * rated * systems
    alone = judging.speed_utterances * ALONE * prices.speak * depth
    seconds = {
        "subset_data": work.recordings_s * prices.encode + work.texts * (prices.speak + prices.hear),
        "score_layers": score_s,
        "prune_layers": prices.open_s,
        "distill_student": healing.steps * prices.student_step + control_steps * prices.control_step,
        "evaluate_student": speaking + alone + systems * prices.open_s,
        "register_model": 0.0,
    }
    words = {
        "subset_data": f"{work.recordings_s / 3600:.2f} h of recordings encoded{spoken}",
        "score_layers": f"{scoring.method}, {scored}",
        "prune_layers": f"{layers} -> at most {keep} layers",
        "distill_student": f"{healing.steps} steps of {healing.tokens_per_step} tokens"
        + (f", and {control_steps} of the control" if healing.control else ""),
        "evaluate_student": f"{systems} systems x {sentences} utterances",
        "register_model": "verdict, model card, lineage",
    }
    return [StageEstimate(stage=s, work=words[s], seconds=prices.open_s + seconds[s]) for s in STAGES]


def _scoring(params: Params, layers: int, prices: Prices) -> tuple[str, float]:
    """The measurement in words, and its seconds."""
    knobs, width = params.score_layers, params.score_layers.beam_width
    if knobs.method == "wli":
        rows = (layers + 1) * knobs.utterances
        return f"{layers + 1} models x {knobs.utterances} utterances", rows * (prices.speak + prices.hear)
    if knobs.method == "block_influence":
        return f"{knobs.utterances} utterances", knobs.utterances * layers * prices.layer
    sets = [(layers if cut == 1 else width * (layers - cut + 1), layers - cut) for cut in range(1, layers)]
    passes = sum(number * left for number, left in sets) / 2  # sets share what their first layers compute
    return (
        f"{sum(number for number, _ in sets)} sets of layers x {knobs.utterances} utterances",
        knobs.utterances * passes * prices.layer,
    )


def disk_bytes(params: Params, teacher: Teacher, work: Workload) -> float:
    """Models, two checkpoints of each training with its optimiser's state, and the audio that is kept."""
    one_layer = sum(p.numel() for p in teacher.model.model.layers[0].parameters())
    audio = 5 * 24 * work.utterance_s * teacher.codec.sample_rate_hz * SAMPLE_BYTES
    return model_bytes(params, teacher.model.num_parameters(), one_layer, teacher.num_layers) + audio
