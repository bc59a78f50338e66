"""One run of all six stages for each family: a taught tiny teacher, and ears that hear what was really said."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from slimtts.evaluation.speed import measure_here
from slimtts.params import Params, load_params, parse_params
from slimtts.results import DistillReport, EvaluationReport, LayerScores, PrunePlan, Release, SubsetReport
from slimtts.stages import distill_student, evaluate_student, prune_layers, register_model, score_layers, subset_data
from slimtts.teachers import loading, neutts
from slimtts.teachers.base import Teacher
from slimtts.testing.taught import write_taught_folder
from slimtts.testing.toy_speech import FrameCodec, ToyMos, ToyRecognizer, ToyVoices, write_toy_corpus
from slimtts.workspace import Workspace

# Rate of the real codec, and rows of the embedding table that no token has.
FAMILIES = {"llasa": (16_000, 7), "cosyvoice2": (24_000, 0), "neutts": (24_000, 7), "orpheus": (24_000, 7)}
VOICES = ("anna", "orpheus:tara")  # Orpheus knows tara by name and clones anna
METHODS = ("wli", "block_influence", "search")
ROOT = Path(__file__).parents[2]
KNOBS = {
    "decoding": {"max_new_tokens": 40},
    "subset_data": {
        "selection_utterances": 8, "test_utterances": 16, "max_share": 0.4, "extra_texts": 4, "max_take_wer": 0.34,
    },
    "score_layers": {"utterances": 8, "bootstrap_samples": 100},
    "prune_layers": {"keep_layers": 2},
    "distill_student": {"steps": 30, "tokens_per_step": 1024, "learning_rate": 5.0e-3, "device": "cpu"},
    "evaluate_student": {"utterances": 16, "mos_utterances": 4, "speed_utterances": 2, "bootstrap_samples": 200},
    "register_model": {"min_utterances": 16, "min_voice_contrast": None},  # in the toy language all voices are one
}  # fmt: skip


@dataclass(frozen=True)
class Story:
    """What one family's run left behind."""

    params: Params
    teacher: Teacher
    workspace: Workspace
    data: SubsetReport
    scores: dict[str, LayerScores]
    plan: PrunePlan
    healing: DistillReport
    evaluation: EvaluationReport
    release: Release

    @property
    def family(self) -> str:
        return self.params.teacher.family

    def curve(self, name: str) -> list[float]:
        lines = (self.workspace.student / f"{name}.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]


def params_for(family, source, manifest, **changes):
    """The shipped knobs, small; `changes` are sections as in params.yaml."""
    values = load_params(ROOT / "params.yaml").model_dump(mode="json")
    values["teacher"] = {"family": family, "source": str(source), "training_hours": 0.02}
    values["subset_data"]["source"] = str(manifest)
    for section, knobs in [*KNOBS.items(), *changes.items()]:
        values[section] |= knobs
    return parse_params(yaml.safe_load(yaml.safe_dump(values)), family)


@pytest.fixture(scope="module", params=FAMILIES)
def story(request, tmp_path_factory):
    family, (rate_hz, padding_rows) = request.param, FAMILIES[request.param]
    torch.set_num_threads(1)
    root, codec = tmp_path_factory.mktemp(family), FrameCodec(rate_hz)
    manifest = write_toy_corpus(root / "speech", codec, VOICES)
    workspace = Workspace(root / "run")
    workspace.root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading.FAMILIES[family], "load_codec", lambda *_: codec)
        patch.setattr(
            neutts, "phonemes", lambda text, language: text.upper()
        )  # no espeak: letters are phonemes of this language
        for stage in (subset_data, score_layers, evaluate_student):
            patch.setattr(stage, "open_recognizer", lambda _: ToyRecognizer(codec))
        patch.setattr(register_model, "name_of_recognizer", lambda _: ToyRecognizer(codec).name)
        patch.setattr(evaluate_student, "SpeakerSimilarity", lambda: ToyVoices(codec))
        patch.setattr(evaluate_student, "MosPredictor", ToyMos)
        patch.setattr(evaluate_student, "measure_speed", measure_here)  # a new process would not hear the toy codec
        source = write_taught_folder(family, root / "hub", codec, manifest, padding_rows)
        params = params_for(family, source, manifest)
        data = subset_data.subset_data(params, workspace)
        scores = {}
        for method in METHODS:
            knobs = params.score_layers.model_copy(update={"method": method})
            scores[method] = score_layers.score_layers(params.model_copy(update={"score_layers": knobs}), workspace)
        plan = prune_layers.prune_layers(params, workspace)
        healing = distill_student.distill_student(params, workspace)
        evaluation = evaluate_student.evaluate_student(params, workspace)
        release = register_model.register_model(params, workspace)
        teacher = loading.load_teacher(params.teacher)
        yield Story(params, teacher, workspace, data, scores, plan, healing, evaluation, release)
