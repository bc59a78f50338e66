"""What a run would refuse in one of its stages, asked before anything is computed: one list for every door.

`slimtts plan`, `--dry-run` and the start of a run all ask here, and each check calls what the stage itself will call,
so the line is the same. What only shows while a stage works (a damaged recording, say) is not here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import torch
from safetensors import safe_open

from slimtts.data.text_list import read_lines
from slimtts.decoding.guidance import Guidance
from slimtts.distill.batches import PairSampler
from slimtts.distill.distributed import check_parallel
from slimtts.distill.healing import PRESETS
from slimtts.distill.ranks import torchrun, wanted_nodes
from slimtts.distill.training import pick_device
from slimtts.errors import InvalidInputError
from slimtts.evaluation.normalization import simplified
from slimtts.evaluation.similarity import WavLmSimilarity
from slimtts.evaluation.word_meter import WordMeter, name_of_recognizer, open_recognizer
from slimtts.params import Params, StorageParams
from slimtts.pruning.budget import DepthCost, Limit, most_layers
from slimtts.pruning.plan import check_keep_layers, check_retained
from slimtts.pruning.vocabulary import needed_ids, prompted_ids
from slimtts.stages.benchmark_set import benchmark_rows
from slimtts.stages.distill_student import check_cacheable
from slimtts.stages.sentence_groups import check_groups
from slimtts.stages.subset_data import first_choice, open_source, texts_of_the_teacher, unreadable_texts
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.detection import stated_layers
from slimtts.teachers.loading import load_teacher

TRIAL_TEXT = "one"  # in the grammar of every family
TRIAL_S = 1.0


def check_run(params: Params, root: Path, finished: Collection[str] = ()) -> None:
    """Returns when nothing speaks against a run of these params in the folder `root`, which need not exist.

    What only `finished` stages need is not asked for.

    Raises:
        InvalidInputError: the line that the run itself would end with.
        MissingToolError: a package that it needs is not installed.
    """
    root = root.absolute()  # before the place changes
    with at_workspace(params, root) as own:
        check_folder(root)
        check_storage(own.storage)
        if set(finished) >= {"subset_data", "score_layers", "prune_layers", "distill_student", "evaluate_student"}:
            return
        teacher = load_teacher(own.teacher, with_model=False)
        check_teacher(teacher)
        if "prune_layers" not in finished:
            check_depth(own, teacher)
        if "distill_student" not in finished:
            check_processes(own)
            check_healing(own, teacher)
            check_disk(own, teacher, root)
        if "evaluate_student" not in finished:
            check_evaluation(own, teacher, root)
        if "subset_data" not in finished:
            check_data(own, teacher, root)


@contextlib.contextmanager
def at_workspace(params: Params, root: Path) -> Iterator[Params]:
    """The params as the stages read them: relative paths start at the workspace, wherever this process stands."""
    root = root.absolute()

    def anchored(path: str) -> str:
        inside = Path(os.path.normpath(root / path))
        return str(inside) if path and inside.exists() else path

    teacher, healing = params.teacher, params.distill_student
    changes = {
        "teacher": teacher.model_copy(update={"source": anchored(teacher.source), "codec": anchored(teacher.codec)}),
        "recogniser": params.recogniser.model_copy(update={"model": anchored(params.recogniser.model)}),
        "distill_student": healing.model_copy(
            update={
                "vocabulary_texts": str(root / healing.vocabulary_texts) if healing.vocabulary_texts else "",
                "teacher_cache": str(root / healing.teacher_cache) if healing.teacher_cache else "",
            }
        ),
        "evaluate_student": params.evaluate_student.model_copy(
            update={"similarity": anchored(params.evaluate_student.similarity)}
        ),
    }
    with tempfile.TemporaryDirectory(prefix="slimtts-checks-") as empty, contextlib.chdir(empty):
        yield params.model_copy(update=changes)


def nearest_folder(path: Path) -> Path:
    """The path, or what of it is there already."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def check_folder(root: Path) -> None:
    """Raises InvalidInputError where nothing can be written."""
    there = nearest_folder(root)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InvalidInputError(
            f"folder {there}", error.strerror or type(error).__name__, "a folder that can be written",
            "change its permissions, or name another with --runs",
        ) from None  # fmt: skip


def check_storage(storage: StorageParams) -> None:
    """Raises InvalidInputError for an address that is none, or a remote without keys."""
    endpoint = urlsplit(storage.s3_endpoint)
    if storage.s3_endpoint and not (endpoint.scheme in ("http", "https") and endpoint.hostname):
        raise InvalidInputError(
            "storage.s3_endpoint", f"'{storage.s3_endpoint}'", "http://host:port, https://host, or \"\" for AWS",
            "correct it",
        )  # fmt: skip
    if not storage.dvc_remote:
        return
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        keys = Session().get_credentials()
    except BotoCoreError as error:
        keys, problem = None, str(error)
    else:
        problem = "no keys for it"
    if keys is None:
        raise InvalidInputError(
            f"storage.dvc_remote {storage.dvc_remote}", problem, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            "export them, or set storage.dvc_remote to the empty text",
        )  # fmt: skip


def check_teacher(teacher: Teacher) -> None:
    """Raises what its prompts, its codec and its hours raise: most of all where a package of the family is missing."""
    teacher.prompt_ids(TRIAL_TEXT, Prompt())
    teacher.audio([0] * max(1, round(TRIAL_S * teacher.codec.frame_rate_hz)))
    _ = teacher.training_hours


def check_depth(params: Params, teacher: Teacher) -> None:
    """Raises InvalidInputError for a depth that this teacher does not have or the limits do not allow."""
    knobs, layers = params.prune_layers, stated_layers(teacher.folder)
    if layers is None:
        return
    if knobs.retained:
        check_retained(knobs.retained, layers)
        return
    check_keep_layers(knobs.keep_layers, layers)
    total, of_layer = parameter_counts(teacher.folder)
    if knobs.ffn_share == 1 and of_layer:
        cost = DepthCost(total - of_layer * layers, of_layer, total)
        limit = Limit("prune_layers.max_parameter_share", knobs.max_parameter_share, cost)
        most_layers(knobs.keep_layers, layers, [limit])


def parameter_counts(folder: Path) -> tuple[int, int]:
    """Of all tensors of a checkpoint, and of its first decoder layer; only headers are read."""
    total = of_layer = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                count = int(torch.Size(opened.get_slice(name).get_shape()).numel())
                total += count
                of_layer += count if ".layers.0." in name else 0
    return total, of_layer


def check_processes(params: Params) -> None:
    """Raises InvalidInputError for a device that is not there, or processes that do not fit the machines."""
    knobs = params.distill_student
    check_parallel(knobs)
    nodes = wanted_nodes()
    if nodes > 1:
        torchrun([], knobs.processes, nodes)
    pick_device(knobs.device, max(0, knobs.processes // nodes - 1))
    pick_device(knobs.device)


def check_healing(params: Params, teacher: Teacher) -> None:
    """Raises InvalidInputError for settings of the training that exclude each other or do not fit the family."""
    knobs = params.distill_student
    guidance = Guidance(knobs.guidance_text, knobs.guidance_voice)
    PairSampler(teacher, [], knobs.tokens_per_step, knobs.seed, guidance, knobs.bistream_share, knobs.packed_row_tokens)
    if guidance.companions:
        teacher.textless_prompt_ids(Prompt())
    if knobs.teacher_cache:
        check_cacheable(PRESETS[knobs.preset].changed(knobs.loss), guidance)
        check_folder(Path(knobs.teacher_cache))
    if knobs.vocabulary == "trim":
        needed_ids(teacher, prompted_ids(teacher, [(TRIAL_TEXT, Prompt())]))
        if knobs.vocabulary_texts:
            read_lines(Path(knobs.vocabulary_texts), "distill_student.vocabulary_texts")


def model_bytes(params: Params, parameters: int, of_layer: int, num_layers: int) -> float:
    """Disk for models and, of each training, two checkpoints with the optimiser's state."""
    whole = 4 * parameters
    student = whole - 4 * of_layer * (num_layers - min(num_layers, params.prune_layers.keep_layers))
    control = whole if params.distill_student.control else 0
    state = 3 if params.distill_student.optimizer == "adamw" else 2.2  # weights and two moments, or mostly one
    return 3 * student + control + 2 * state * (student + control)


def check_disk(params: Params, teacher: Teacher, root: Path) -> None:
    """Raises InvalidInputError where models and checkpoints do not fit; what the run has written already counts."""
    total, of_layer = parameter_counts(teacher.folder)
    needed = model_bytes(params, total, of_layer, stated_layers(teacher.folder) or 0)
    written = sum(file.lstat().st_size for file in root.rglob("*") if file.is_file()) if root.is_dir() else 0
    free = shutil.disk_usage(nearest_folder(root)).free
    if free + written < needed:
        raise InvalidInputError(
            f"disk of {nearest_folder(root)}", f"{free / 1e9:.1f} GB free", f"{(needed - written) / 1e9:.1f} GB",
            "free space, or name runs on another disk with --runs",
        )  # fmt: skip


def check_evaluation(params: Params, teacher: Teacher, root: Path) -> None:
    """Raises InvalidInputError for judges that do not know the language, or sentences that are not there."""
    knobs = params.evaluate_student
    name_of_recognizer(params.recogniser)
    if params.judged_language != "en":
        WordMeter(params.for_evaluation(), open_recognizer(params.recogniser))
    if params.judged_language == "zh":
        simplified(TRIAL_TEXT)
    check_groups(params)
    benchmark_rows(params, root, teacher.layout.num_codes)
    if knobs.similarity != "bundled":
        WavLmSimilarity.load(knobs.similarity)


def check_data(params: Params, teacher: Teacher, root: Path) -> None:
    """Raises InvalidInputError for data that are not there, are too few, or that this codec cannot encode."""
    source = open_source(params, teacher, root)
    subset = first_choice(source, teacher, params, unreadable_texts(source, teacher))
    if params.subset_data.speech != "corpus":
        texts_of_the_teacher(subset, params, root)
    if any(row.id in source.recordings for row in (*subset.train, *subset.test)):
        samples = round(TRIAL_S * teacher.codec.sample_rate_hz)
        teacher.codec.encode(torch.sin(torch.arange(samples) * 0.1)[None] * 0.1)
