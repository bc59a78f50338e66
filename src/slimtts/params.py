"""Every knob of the pipeline, validated once, all mistakes reported together.

`params.yaml` holds the values with unit and cost; this file holds types and limits. One section a stage, named as
the stage, and three shared ones: `teacher`, `decoding`, `recogniser`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from slimtts.errors import InvalidInputError
from slimtts.redaction import without_login
from slimtts.yaml_files import read_yaml

MOST = 1_000_000_000  # of anything that is counted: more is a slip, and would only show when memory or time ends
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
Count = Annotated[int, Field(ge=0, le=MOST)]
Share = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Weight = Annotated[float, Field(ge=0, le=1000)]
FamilyName = Literal["nano", "llasa", "cosyvoice2", "neutts", "orpheus"]
Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]  # ISO code
# Normalisers that are right in one language alone: Chinese has no case to forget, other languages do.
NORMALIZER_LANGUAGE = {"seed_tts_eval_zh": "zh", "whisper_en": "en"}
VariantName = Literal["int8", "fp8", "sparse24", "sparse24_int8"]


class Section(BaseModel):
    """A part of params.yaml: unknown keys are errors, values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _has_no_login(cls, value: Any) -> Any:
        """Parameters are kept, logged and shown in many places; logins come from the environment."""
        if isinstance(value, str) and without_login(value) != value:
            raise ValueError("an address without a login: logins and keys come from the environment")
        return value


class TeacherParams(Section):
    """Which model is compressed."""

    family: FamilyName
    source: str
    revision: str = ""
    codec: str = ""
    training_hours: Annotated[float, Field(gt=0)] | None = None
    language: Language = "en"


class DecodingParams(Section):
    """How speech is generated wherever it is judged."""

    temperature: Annotated[float, Field(ge=0, le=2)]
    top_p: Share
    max_new_tokens: PositiveInt
    batch_rows: PositiveInt
    seed: Seed
    top_k: Count = 0
    repetition_aware: bool = False
    repetition_penalty: Annotated[float, Field(ge=1, le=2)] = 1.0


class RecogniserParams(Section):
    """Who transcribes, and how transcripts are normalised before words are counted."""

    model: str
    normalizer: Literal["basic", "seed_tts_eval", "seed_tts_eval_zh", "f5_tts", "whisper_en"]
    beam_size: PositiveInt


class SubsetDataParams(Section):
    """Which utterances are used, and for what."""

    source: str
    strategy: Literal["random", "balanced", "coverage"]
    max_share: Share
    selection_utterances: PositiveInt
    test_utterances: PositiveInt
    speech: Literal["corpus", "teacher", "both", "further"]
    teacher_takes: PositiveInt
    teacher_temperature: Annotated[float, Field(gt=0, le=2)]
    max_take_wer: Annotated[float, Field(ge=0, le=1)]
    extra_texts: Count
    text_list: str
    on_bad_audio: Literal["fail", "drop"]
    seed: Seed


class ScoreLayersParams(Section):
    """How a layer's importance is measured."""

    method: Literal["wli", "block_influence", "search"]
    beam_width: PositiveInt
    utterances: PositiveInt
    early_stop_risk: Annotated[float, Field(ge=0, le=0.5)] | None = None
    bootstrap_samples: PositiveInt
    seed: Seed


class PruneLayersParams(Section):
    """How small the student is."""

    keep_layers: PositiveInt
    max_parameter_share: Share
    max_latency_share: Share
    retained: tuple[Count, ...]
    ffn_share: Share
    calibration_utterances: PositiveInt


class LossParams(Section):
    """Changes to the preset's loss; what is left out stays as the preset has it. Terms: slimtts/distill/healing.py."""

    cross_entropy: Weight | None = None
    skew_kl: Weight | None = None
    latent: Weight | None = None
    attention: Weight | None = None
    embedding: Weight | None = None
    latent_kind: Literal["squared", "relative"] | None = None
    matching: Literal["dynamic", "static"] | None = None
    skew: Annotated[float, Field(ge=0, lt=1)] | None = None
    temperature: Annotated[float, Field(gt=0, le=10)] | None = None


class DistillStudentParams(Section):
    """How the student is healed, and how long the control is trained on."""

    preset: Literal["default", "spade"]
    loss: LossParams
    steps: Count
    tokens_per_step: PositiveInt
    optimizer: Literal["muon", "adamw"]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    control_learning_rate: Annotated[float, Field(gt=0, le=1)]
    warmup_share: Annotated[float, Field(ge=0, lt=1)]
    guidance_text: Annotated[float, Field(ge=0, le=10)]
    guidance_voice: Annotated[float, Field(ge=0, le=10)]
    bistream_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    vocabulary: Literal["keep", "trim"] = "keep"
    vocabulary_texts: str = ""
    checkpoint_every_steps: PositiveInt
    control: bool
    control_steps: Count | None = None
    device: Literal["auto", "cpu", "cuda"]
    micro_batches: PositiveInt = 1
    processes: PositiveInt = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    packed_row_tokens: Count = 0
    teacher_cache: str = ""
    activation_checkpointing: bool = False
    compile: Literal["auto", "on", "off"] = "auto"
    seed: Seed

    @property
    def steps_of_control(self) -> int:
        """At most as many as the student's."""
        return self.steps if self.control_steps is None else min(self.steps, self.control_steps)


class EvaluateStudentParams(Section):
    """What is measured, and on which sentences."""

    benchmark: Literal["nano", "seed-tts-eval", "librispeech-pc", "manifest"] = "nano"
    benchmark_source: str = ""
    language: Annotated[str, Field(pattern=r"^([a-z]{2,3})?$")] = ""
    similarity: Annotated[str, Field(min_length=1)] = "bundled"
    hard_sentences: bool = False
    best_of: Annotated[int, Field(ge=1, le=64)] = 1
    best_of_temperature: Annotated[float, Field(gt=0, le=2)] = 0.8
    utterances: PositiveInt
    mos_utterances: PositiveInt
    speed_utterances: PositiveInt
    agreement_utterances: Count = 64
    audio_utterances: PositiveInt = 24
    bootstrap_samples: PositiveInt
    variants: tuple[VariantName, ...] = ()
    seed: Seed


class RegisterModelParams(Section):
    """Name in the registry and the gate in front of production."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    promote: bool
    approval: Literal["none", "required"]
    approval_hours: Annotated[float, Field(gt=0, le=8760)]
    min_utterances: PositiveInt
    max_wer_gap_upper_points: Annotated[float, Field(ge=0)]
    max_wer_points_over_production: Annotated[float, Field(ge=0)] | None
    max_similarity_drop: Annotated[float, Field(ge=0)]
    max_mos_drop_upper: Annotated[float, Field(ge=0)]
    max_no_end_rate: Annotated[float, Field(ge=0, le=1)]
    min_speedup: Annotated[float, Field(gt=0)]
    max_reference_wer: Share = 0.1
    max_teacher_wer: Share = 0.2
    min_voice_contrast: Annotated[float, Field(ge=0, le=2)] | None = 0.05


class StorageParams(Section):
    """Where DVC pushes: empty for nowhere, or s3://bucket/prefix."""

    dvc_remote: Annotated[str, Field(pattern=r"^$|^s3://[a-z0-9][a-z0-9.-]+(/[^\x00-\x1f\x7f]*)?$")]
    s3_endpoint: Annotated[str, Field(pattern=r"^$|^https?://[^\s/?#@\x00-\x1f\x7f]+(/[^\s?#@\x00-\x1f\x7f]*)?$")]


def _with_language(values: Any) -> Any:
    """Params of before teacher.language state the one language of a run in evaluate_student."""
    sections = values if isinstance(values, dict) else {}
    teacher, evaluated = sections.get("teacher"), sections.get("evaluate_student")
    stated = evaluated.get("language") if isinstance(evaluated, dict) else None
    if stated and isinstance(teacher, dict) and "language" not in teacher:
        return sections | {"teacher": teacher | {"language": stated}}
    return values


class Params(Section):
    """All of params.yaml."""

    teacher: TeacherParams
    decoding: DecodingParams
    recogniser: RecogniserParams
    subset_data: SubsetDataParams
    score_layers: ScoreLayersParams
    prune_layers: PruneLayersParams
    distill_student: DistillStudentParams
    evaluate_student: EvaluateStudentParams
    register_model: RegisterModelParams
    storage: StorageParams

    def for_evaluation(self) -> Params:
        """The same with the teacher in the language that is evaluated, which may not be that of its data."""
        language = {"language": self.judged_language}
        sections = {"teacher": self.teacher, "evaluate_student": self.evaluate_student}
        return self.model_copy(update={name: knobs.model_copy(update=language) for name, knobs in sections.items()})

    @property
    def judged_language(self) -> str:
        """ISO code of what is evaluated."""
        return self.evaluate_student.language or self.teacher.language

    _fill = model_validator(mode="before")(_with_language)


def _refuse_deaf_judges(params: Params) -> None:
    """Refuses languages that no stage could measure, before the first one starts."""
    spoken, judged, recogniser = params.teacher.language, params.judged_language, params.recogniser
    next_step = "correct params.yaml"
    if params.evaluate_student.benchmark == "nano" and judged != spoken:
        raise InvalidInputError(
            "evaluate_student.language", f"{judged} for benchmark nano, whose sentences are those of the data",
            f"teacher.language, {spoken}", "set teacher.language to what the data are spoken in",
        )  # fmt: skip
    foreign = next((language for language in (spoken, judged) if language != "en"), None)
    if foreign and (recogniser.model == "bundled" or recogniser.model.endswith(".en")):
        raise InvalidInputError(
            "recogniser.model", f"{recogniser.model}, which knows English alone, for language {foreign}",
            "a recogniser that knows the language", next_step,
        )  # fmt: skip
    only = NORMALIZER_LANGUAGE.get(recogniser.normalizer, judged)
    if only != judged:
        raise InvalidInputError(
            "recogniser.normalizer", f"{recogniser.normalizer} for language {judged}", f"it for {only}, or another",
            next_step,
        )  # fmt: skip


def _shortened(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:197]}..."


def parse_params(values: dict[str, Any], origin: str) -> Params:
    """Validated parameters.

    Raises:
        InvalidInputError: one line that names every bad key with what was observed, or languages that no judge knows.
    """
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        problems = [
            (".".join(str(part) for part in item["loc"]), item["type"], item["input"], item["msg"])
            for item in error.errors()
        ]
        observed = "; ".join(
            f"{where} is not a known key"
            if kind == "extra_forbidden"
            else f"{where} is missing"
            if kind == "missing"
            else f"{where} = {_shortened(value)}"
            if where
            else message.removeprefix("Value error, ")
            for where, kind, value, message in problems
        )
        allowed = "; ".join(
            f"{where}: {message}" if where else "knobs that fit each other"
            for where, kind, _, message in problems
            if kind not in ("extra_forbidden", "missing")
        )
        raise InvalidInputError(
            origin, observed, allowed or "the keys of the shipped params.yaml", "correct the keys and run again"
        ) from None
    _refuse_deaf_judges(params)
    return params


def load_params(path: Path) -> Params:
    """Reads and validates a params.yaml.

    Raises:
        InvalidInputError: the file is missing, is not YAML, or holds bad values.
    """
    values = read_yaml(path, next_step="correct the file, run from a workspace or pass --params")
    return parse_params(values if isinstance(values, dict) else {}, str(path))
