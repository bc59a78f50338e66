"""What the stages hand to each other and to people: frozen, validated, stored as JSON.

Rates are fractions (0.05 = 5 %); differences that people read in points say so in their name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from slimtts.errors import InvalidInputError
from slimtts.storage import atomic_path


class Result(BaseModel):
    """A frozen record that reads and writes itself."""

    # NaN and infinity as strings: null could not be read back, and a judge must see them.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    def write(self, path: Path) -> None:
        """Writes JSON, complete or not at all."""
        with atomic_path(path) as tmp:
            tmp.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what `write` wrote.

        Raises:
            InvalidInputError: the file is missing or is not such a result.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValueError) as error:
            problem = str(error)
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                problem = f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
            raise InvalidInputError(
                str(path), problem, f"a {cls.__name__} written by slimtts", "run the stage that writes it again"
            ) from None


class Interval(Result):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class SplitSummary(Result):
    """Size of one split and how many distinct words it holds."""

    utterances: int
    hours: float
    words: int


class SubsetReport(Result):
    """What subset_data chose. `share` is recorded train hours / the teacher's training hours.

    `splits` counts recordings; `teacher_spoken` counts the training utterances that the teacher spoke.
    """

    strategy: str
    teacher_hours: float
    share: float
    word_coverage: float
    splits: dict[str, SplitSummary]
    dropped: dict[str, int]
    data_sha256: str
    teacher_spoken: int = 0


class LayerScore(Result):
    """Importance of one layer: high = keep. WER fields are None for methods that do not synthesise.

    `utterances` were spoken without it: fewer than by the full model where its rank was settled early.
    """

    layer: int
    importance: float
    wer_capped: Interval | None = None
    wer_raw: float | None = None
    no_end_rate: float | None = None
    utterances: int | None = None


class LayerScores(Result):
    """What score_layers measured; `drop_order` lists layers from the least important on.

    `best_sets`, from methods that judge layers together: for a number of layers, the best set of that size.
    `tied_layers`: groups of layers of equal importance; `tied_sets`: by size, every set as good as the best, where
    there are several. Both are ordered by number, which says nothing of the layers.
    `early_stop_risk`: of an order other than all utterances would give; None where every layer had all of them.
    """

    method: str
    num_layers: int
    utterances: int
    reference_wer: Interval | None
    layers: list[LayerScore]
    drop_order: list[int]
    best_sets: dict[int, list[int]] = {}
    tied_layers: list[list[int]] = []
    tied_sets: dict[int, list[list[int]]] = {}
    early_stop_risk: float | None = None
    data_sha256: str
    teacher_sha256: str


class PrunePlan(Result):
    """Which layers stay; 0-based and sorted.

    `latency_share` is the estimate, student / teacher, of a latency limit; None when nothing was measured.
    `tied_layers`: layers whose scores were equal where the cut was made, so that their numbers chose among them.
    """

    num_layers: int
    retained: list[int]
    dropped: list[int]
    teacher_parameters: int
    student_parameters: int
    teacher_sha256: str
    latency_share: float | None = None
    tied_layers: list[int] = []


class TrainingReport(Result):
    """How one training ended; curves are in the JSON lines beside it."""

    name: str
    steps: int
    tokens: int
    wall_s: float
    final_loss: float
    weights_sha256: str


class DistillReport(Result):
    """What distill_student did."""

    preset: str
    student: TrainingReport
    control: TrainingReport | None
    device: str


class ModelOrigin(Result):
    """What a model's folder says of itself: how to open it, and which teacher's licence binds it.

    Sources are as the run's params name them, folders with their full path: `codec` is a folder, a hub id at a
    commit, or "" for the family's own. `retained` are the teacher's layers that it holds. `language` (ISO code) is what
    its texts are read as.
    """

    family: str
    codec: str
    teacher_source: str
    teacher_revision: str
    teacher_sha256: str
    license: str
    retained: list[int] | None = None
    language: str = "en"


class VoicePrompt(Result):
    """What somebody said, and its codes: enough to speak in that voice."""

    text: str
    codes: list[int]


class Voices(Result):
    """The voices that a student was evaluated in, by name."""

    voices: dict[str, VoicePrompt]


class SpeedResult(Result):
    """Batch 1, after warm-up, device synchronised; results made before there were the last three have none."""

    lm_rtf: float
    end_to_end_rtf: float
    tokens_per_s: float
    latency_p50_s: float
    latency_p95_s: float
    peak_memory_mb: float
    first_audio_p50_s: float | None = None
    first_audio_p95_s: float | None = None
    eager_lm_rtf: float | None = None


class SystemResult(Result):
    """One system (teacher, pruned, student, control, variants) on the test split. Failures count as errors.

    `weight_mb` is what the weights take as they are loaded, in MB of 2**20 bytes; older evaluations have none.
    """

    name: str
    num_layers: int
    parameters: int
    utterances: int
    wer_corpus: Interval
    wer_mean: Interval
    no_end_rate: float
    failures: int
    similarity: Interval
    mos: Interval
    mos_predictor: str
    speed: SpeedResult
    weight_mb: float | None = None


class PairedGap(Result):
    """system minus baseline, on the same utterances; corpus WER in points, with the p-value of the same statistic."""

    system: str
    baseline: str
    wer_points: Interval
    p_value: float
    similarity: Interval
    mos: Interval


class GroupResult(Result):
    """One system on sentences beside the test set, or in several attempts; no part of its `SystemResult`.

    `group`: hard, hard/KIND, or best-of-N by WER. `takes` attempts a sentence at `temperature`, the one with the fewest
    word errors counts. `caveat` says why the numbers must not be read as the system's, or is empty.
    """

    group: str
    system: str
    utterances: int
    takes: int
    temperature: float
    test_set_sha256: str
    wer_corpus: Interval
    wer_mean: Interval
    no_end_rate: float
    failures: int
    similarity: Interval
    caveat: str = ""


class EvaluationReport(Result):
    """What evaluate_student measured; compare two only when `slimtts.evaluation.protocols.unlike` finds nothing.

    `weights_sha256` names the weights of each system; evaluations made before it existed have none. With `metric` CER
    every WER is one of characters. `reference_wer` is that of the originals' codes, None for a benchmark without
    originals. `other_voice_similarity` is the mean cosine of the teacher's speech to prompts in other voices, None
    where there is one voice. `deviations` say why the numbers are not those of a benchmark's published protocol.
    """

    asr: str
    normalizer: str
    test_set_sha256: str
    utterances: int
    reference_wer: float | None
    systems: dict[str, SystemResult]
    gaps: list[PairedGap]
    machine: str
    weights_sha256: dict[str, str] = {}
    benchmark: str = "nano"
    language: str = "en"
    metric: Literal["WER", "CER"] = "WER"
    similarity_predictor: str = ""
    other_voice_similarity: float | None = None
    deviations: list[str] = []
    groups: list[GroupResult] = []

    def gap(self, system: str, baseline: str) -> PairedGap:
        """The comparison of two systems.

        Raises:
            InvalidInputError: these two were not compared.
        """
        for gap in self.gaps:
            if (gap.system, gap.baseline) == (system, baseline):
                return gap
        have = ", ".join(f"{g.system} against {g.baseline}" for g in self.gaps) or "none"
        raise InvalidInputError("evaluation", f"no comparison of {system} with {baseline}", have, "evaluate again")


class AgreementBin(Result):
    """Agreement at positions `first` to `last` of the utterances, means over utterances; 0 is the first code."""

    first: int
    last: int
    utterances: int
    top1: Interval
    kl_nats: Interval


class SystemAgreement(Result):
    """How often a system's most likely code is the teacher's, and KL(teacher || system), a code."""

    top1: Interval
    kl_nats: Interval
    bins: list[AgreementBin]


class AgreementReport(Result):
    """Every system beside the teacher, both told the recorded codes up to each position."""

    utterances: int
    systems: dict[str, SystemAgreement]


class KeptSentence(Result):
    """A test sentence that can be heard: drawn at random, or among those that the student got most wrong.

    `original_transcript` is of the recording through the codec; None where there is no recording.
    """

    id: str
    text: str
    voice: str
    prompt_text: str
    original_transcript: str | None
    chosen: Literal["random", "worst"]


class KeptAudio(Result):
    """Whose audio evaluate_student kept, as audio/SYSTEM/ID.wav."""

    sentences: list[KeptSentence]


Decision = Literal["ACCEPT", "REGRESSION", "INCOMPLETE", "ANOMALOUS"]


class Verdict(Result):
    """The gate's decision and every reason for it."""

    decision: Decision
    reasons: list[str]


class Basis(Result):
    """What a version was judged on; the numbers of two versions are comparable only when all but the WERs agree.

    Predictors are empty where they were not recorded yet.
    """

    test_set_sha256: str
    asr: str
    normalizer: str
    teacher_sha256: str
    teacher_wer: float
    student_wer: float
    benchmark: str = "nano"
    language: str = "en"
    metric: Literal["WER", "CER"] = "WER"
    similarity_predictor: str = ""
    mos_predictor: str = ""


class Lineage(Result):
    """Where a version comes from; enough to check it out again.

    `dvc_outputs`: path -> hash of all that the stages before the release put out, as dvc.lock has it; `dvc_revision`
    is one hash of them. `tied_layers` as in `PrunePlan`.
    """

    git_sha: str
    data_sha256: str
    teacher_sha256: str
    student_sha256: str
    dvc_revision: str
    dvc_outputs: dict[str, str]
    asr: str
    normalizer: str
    retained: list[int]
    seed: int
    preset: str
    tied_layers: list[int] = []


class Release(Result):
    """What register_model assembled for the registry."""

    model_name: str
    lineage: Lineage
    verdict: Verdict
    metrics: dict[str, float]


class StageEstimate(Result):
    """What a stage will do, in words, and its seconds on this machine."""

    stage: str
    work: str
    seconds: float


class RunEstimate(Result):
    """What a run will cost; finished stages cost nothing. `unknown` is what the times leave out."""

    stages: list[StageEstimate]
    finished: list[str]
    seconds: float
    peak_memory_gb: float
    disk_gb: float
    free_disk_gb: float
    machine: str
    unknown: list[str] = []
