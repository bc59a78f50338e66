"""LLaSA, CosyVoice 2, NeuTTS and Orpheus from a published folder to a registered student that speaks.

Real model classes, the families' own tokens and heads, and the real stages; tiny, on a language whose words can be
checked by hand, with a codec and a recogniser of that language. Only published weights are missing.
"""

import base64
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from slimtts.data.manifest import read_utterances
from slimtts.decoding.generation import generate
from slimtts.evaluation.systems import as_arrays
from slimtts.params import DecodingParams, TeacherParams
from slimtts.results import KeptAudio
from slimtts.speech import Speaker
from slimtts.stages import evaluate_student
from slimtts.stages.subset_data import subset_data
from slimtts.stages.voices import speaking_tasks
from slimtts.teachers.checkpoint import hash_weights
from slimtts.teachers.loading import load_teacher
from slimtts.teachers.model_folder import read_origin
from slimtts.testing.toy_speech import FRAME, NUM_CODES, ToyRecognizer, codes_of
from slimtts.workspace import Workspace

from .conftest import ROOT, VOICES

GREEDY = DecodingParams(temperature=0, top_p=1, max_new_tokens=40, batch_rows=16, seed=1)
SAMPLED = GREEDY.model_copy(update={"temperature": 1.5})


def wer(story, system):
    return story.evaluation.systems[system].wer_corpus.value


def opened(story, folder):
    return load_teacher(TeacherParams(family=story.family, source=str(folder)))


def prompts(story, teacher):
    tasks = speaking_tasks(story.workspace, "test", 16)
    return [teacher.prompt_ids(task.utterance.text, task.prompt) for task in tasks]


def test_data_is_encoded_chosen_within_the_budget_and_spoken_by_the_teacher(story):
    rows = read_utterances(story.workspace.data / "train.jsonl", NUM_CODES)
    recorded = [row for row in rows if not row.id.endswith("-spoken")]
    assert recorded and all(row.codes == codes_of(row.text) for row in recorded)
    assert {row.voice for row in recorded} == set(VOICES)
    assert 0.3 < story.data.share <= 0.4
    assert story.data.splits["selection"].utterances == 8 and story.data.splits["test"].utterances == 16
    assert 0 < story.data.teacher_spoken == len(rows) - len(recorded)


def test_texts_are_enough_to_heal_with_when_a_voice_has_one_recording(story, tmp_path):
    manifest = Path(story.params.subset_data.source)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    prompts, texts = rows[24:26], [row["text"] for row in rows[26:]]  # the rows before are held out
    few, listed = manifest.with_name("few.jsonl"), tmp_path / "texts.txt"
    few.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:24], *prompts]))
    listed.write_text("\n".join(texts))
    knobs = {"source": str(few), "speech": "teacher", "text_list": str(listed)}
    changed = story.params.subset_data.model_copy(update=knobs)
    workspace = Workspace(tmp_path / "run")
    subset_data(story.params.model_copy(update={"subset_data": changed}), workspace)
    spoken = read_utterances(workspace.data / "train.jsonl", NUM_CODES)
    assert {row.id.removesuffix("-spoken")[:9] for row in spoken} >= {"text-list"} and len(spoken) > 0.7 * len(texts)
    assert np.mean([row.codes == codes_of(row.text) for row in spoken]) > 0.7


def test_layers_are_scored_by_words_by_hidden_states_and_in_sets(story):
    by_words, by_states, in_sets = (story.scores[name] for name in ("wli", "block_influence", "search"))
    assert by_words.reference_wer.value < min(0.4, np.mean([layer.importance for layer in by_words.layers]))
    assert len({layer.importance for layer in by_words.layers}) > 1
    assert all(layer.importance > 0 for layer in by_states.layers)
    assert {size: len(chosen) for size, chosen in in_sets.best_sets.items()} == {1: 1, 2: 2, 3: 3}
    for scores in story.scores.values():
        assert sorted(scores.drop_order) == [0, 1, 2, 3] and scores.teacher_sha256 == story.teacher.weights_sha256


def test_the_pruned_model_holds_the_chosen_layers_of_the_teacher_and_nothing_else(story):
    pruned = opened(story, story.workspace.pruned / "model").model
    assert story.plan.retained == story.scores["search"].best_sets[2]
    assert type(pruned) is type(story.teacher.model) and pruned.config.num_hidden_layers == 2
    theirs, ours = story.teacher.model.state_dict(), pruned.state_dict()
    expected = {name: tensor for name, tensor in theirs.items() if ".layers." not in name}
    for place, layer in enumerate(story.plan.retained):
        own, was = f"model.layers.{place}.", f"model.layers.{layer}."
        expected |= {own + n.removeprefix(was): tensor for n, tensor in theirs.items() if n.startswith(was)}
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[name], tensor.half().float()) for name, tensor in expected.items())


@pytest.mark.parametrize("name", ["student", "control"])
def test_losses_are_finite_and_the_students_falls(story, name):
    losses = story.curve(name)
    assert len(losses) == 30 and all(math.isfinite(loss) for loss in losses)
    if name == "student":
        assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_cutting_costs_words_and_healing_wins_them_back(story):
    assert story.evaluation.reference_wer == 0
    assert wer(story, "teacher") < 0.3 and story.evaluation.systems["teacher"].no_end_rate <= 0.1
    assert wer(story, "pruned") > wer(story, "teacher") + 0.15
    assert wer(story, "student") < wer(story, "pruned") - 0.1
    assert story.evaluation.systems["student"].no_end_rate <= 0.1
    assert {name: system.num_layers for name, system in story.evaluation.systems.items()} == {
        "teacher": 4, "pruned": 2, "student": 2, "control": 4,
    }  # fmt: skip


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_student_that_was_opened_again_says_the_same_codes_and_only_codes(story, decoding):
    first = opened(story, story.workspace.student / "student")
    again = opened(story, story.workspace.release / "model")
    spoken = generate(first.model, first.layout, prompts(story, first), decoding)
    assert spoken == generate(again.model, again.layout, prompts(story, again), decoding)
    said = {code for made in spoken for code in made.codes}
    assert len(said) > FRAME and said <= set(range(NUM_CODES))
    assert any(made.ended for made in spoken)


def test_what_cannot_be_said_is_not_said_however_likely(story):
    teacher = opened(story, story.workspace.student / "student")
    layout, head = teacher.layout, teacher.model.get_output_embeddings()
    sayable = {*layout.to_ids(range(NUM_CODES)), layout.end_id}
    rows = range(layout.first_head_id, layout.first_head_id + head.weight.shape[0])
    silent = [place for place, row in enumerate(rows) if row not in sayable]
    before = generate(teacher.model, layout, prompts(story, teacher), GREEDY)
    if teacher.model.config.tie_word_embeddings:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())  # the input keeps its rows
    with torch.no_grad():
        head.weight[silent] = 100.0
    assert silent and generate(teacher.model, layout, prompts(story, teacher), GREEDY) == before


def test_the_same_sentences_of_every_system_can_be_heard_beside_the_recordings(story):
    evaluation = story.workspace.evaluation
    kept = KeptAudio.read(evaluation / "kept.json").sentences
    heard = {folder.name: {path.stem for path in folder.iterdir()} for folder in (evaluation / "audio").iterdir()}
    assert heard.keys() == {*story.evaluation.systems, "prompt", "original", "reference"}
    ids, corpus = {sentence.id for sentence in kept}, Path(story.params.subset_data.source).parent
    recorded = {name for name in ids if (corpus / f"{name}.wav").exists()}  # the corpus has codes alone of the others
    assert recorded < ids and heard.pop("reference") == recorded
    assert all(of_system == ids for of_system in heard.values())
    for name in recorded:
        copy, _ = soundfile.read(evaluation / "audio" / "reference" / f"{name}.wav")
        np.testing.assert_allclose(copy, soundfile.read(corpus / f"{name}.wav")[0], atol=1 / 2**14)


def test_a_killed_evaluation_goes_on_with_the_systems_that_were_not_heard(story, tmp_path, monkeypatch):
    again = Workspace(shutil.copytree(story.workspace.root, tmp_path / "run"))
    (progress,) = again.evaluation_progress.iterdir()
    (student,) = progress.glob("student-*")
    shutil.rmtree(student)
    shutil.rmtree(again.evaluation)
    spoken = []
    monkeypatch.setattr(evaluate_student, "generate", lambda *args: spoken.append(generate(*args)) or spoken[-1])
    evaluate_student.fill_progress(story.params, again)
    assert len(spoken) == 1 and not again.evaluation.exists()
    report = evaluate_student.evaluate_student(story.params, again)
    assert len(spoken) == 1
    assert {n: s.wer_corpus for n, s in report.systems.items()} == {
        n: s.wer_corpus for n, s in story.evaluation.systems.items()
    }
    for name in ("utterances.jsonl", "audio/student/u00.wav"):
        assert (again.evaluation / name).read_bytes() == (story.workspace.evaluation / name).read_bytes()


def test_the_release_names_its_parents(story):
    lineage = story.release.lineage
    assert lineage.student_sha256 == hash_weights(story.workspace.release / "model")
    assert (lineage.teacher_sha256, lineage.retained) == (story.teacher.weights_sha256, story.plan.retained)
    assert story.release.verdict.decision != "INCOMPLETE" and story.release.verdict.reasons
    origin = read_origin(story.workspace.release / "model")
    assert (origin.family, origin.retained) == (story.family, story.plan.retained)
    assert story.teacher.family.license in (story.workspace.release / "card.md").read_text()


def test_the_registered_model_says_what_the_speaker_says(story, tmp_path):
    import mlflow

    mlflow.pyfunc.save_model(
        tmp_path / "pyfunc",
        python_model=str(ROOT / "tasks" / "speech_pyfunc.py"),
        artifacts={"student": str(story.workspace.release / "model")},
        pip_requirements=[],
    )
    served = mlflow.pyfunc.load_model(str(tmp_path / "pyfunc"))
    asked = pd.DataFrame({"text": ["dut ani cor.", "bel bel dut."], "voice": list(VOICES)})
    answers = served.predict(asked)
    speaker, heard = Speaker.load(story.workspace.release / "model"), []
    for text, voice, answer in zip(asked["text"], asked["voice"], answers["audio_base64"], strict=True):
        samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(answer)), dtype="float32")
        spoken = speaker.speak(text, voice)
        assert rate_hz == speaker.sample_rate_hz == story.teacher.codec.sample_rate_hz
        assert len(spoken) >= FRAME * story.teacher.codec.samples_a_code
        np.testing.assert_allclose(samples, spoken, atol=1 / 2**15)
        heard.append(samples)
    assert all(ToyRecognizer(story.teacher.codec).transcribe(as_arrays(map(torch.from_numpy, heard)), rate_hz))
