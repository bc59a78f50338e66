"""The teacher speaks training texts: the best take stays, held-out texts and other people's recordings stay out."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from slimtts.data.manifest import read_utterances
from slimtts.data.splits import Candidate
from slimtts.data.texts import text_key
from slimtts.distill.batches import PairSampler
from slimtts.distill.healing import PRESETS, HealingLoss
from slimtts.distill.training import TrainingJob, train
from slimtts.errors import InvalidInputError
from slimtts.evaluation.word_meter import WordCounter
from slimtts.params import load_params
from slimtts.results import SubsetReport
from slimtts.stages import subset_data as stage
from slimtts.stages import teacher_speech
from slimtts.stages.teacher_speech import Demands, Line, Take, keep_best, lines_to_speak, speak_lines
from slimtts.stages.voices import speaking_tasks
from slimtts.teachers.base import Prompt
from slimtts.teachers.checkpoint import load_language_model
from slimtts.testing.tiny import NUM_CODES, TinyFamily, tiny_utterances
from slimtts.workspace import Workspace

SHIPPED = load_params(Path(__file__).parents[3] / "params.yaml")
WORDS = ("green", "tiger", "apple", "castle")
TEXT = " ".join(WORDS) + "."
MIN_S = 0.2  # 5 codes
DEMANDS = Demands(max_wer=0.0, min_codes=5)
SPOKEN = ("spoken_without_end", "spoken_too_short", "spoken_with_errors")


def params(**values):
    data = {"selection_utterances": 4, "test_utterances": 6, "speech": "teacher", "extra_texts": 0, "teacher_takes": 3}
    data |= values
    decoding = {"max_new_tokens": 24, "batch_rows": 16}
    return SHIPPED.model_copy(
        update={
            "subset_data": SHIPPED.subset_data.model_copy(update=data),
            "decoding": SHIPPED.decoding.model_copy(update=decoding),
        }
    )


def wrong_words(codes):
    """How many of WORDS the stand-in mishears; the codes alone decide, all numbers 0..4 come."""
    return sum(codes) % 5


def misheard(codes):
    return " ".join(["wrong"] * wrong_words(codes) + list(WORDS[wrong_words(codes) :]))


class StandIn:
    """A recogniser that hears beeps; it may fail before one of its calls."""

    name = "stand-in"

    def __init__(self, codec, fails_at=None):
        self.codec, self.fails_at, self.calls = codec, fails_at, []

    def transcribe(self, waves, rate_hz=16_000):
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        self.calls.append(len(waves))
        assert rate_hz == self.codec.sample_rate_hz
        coded = [self.codec.encode(torch.as_tensor(w)[None])[0].tolist() if len(w) else [] for w in waves]
        return [misheard(codes) for codes in coded]


def some_lines(count):
    return [Line(f"u{i}", TEXT, "ab"[i % 2], Prompt(r.text, r.codes)) for i, r in enumerate(tiny_utterances(count))]


def speak(teacher, count, progress, hears=None, **values):
    hears = hears or StandIn(teacher.codec)
    return speak_lines(teacher, some_lines(count), params(**values), hears.transcribe, MIN_S, progress)


def test_takes_are_heard_and_stop_at_a_perfect_one(teacher, tmp_path):
    takes = speak(teacher, 30, tmp_path)
    for made in takes:
        assert [take.wer for take in made] == [wrong_words(take.codes) / 4 for take in made]
        assert all(DEMANDS.flaw(take) is not None for take in made[:-1])
        assert len(made) == 3 or DEMANDS.flaw(made[-1]) is None
    assert {len(made) for made in takes} == {1, 2, 3}
    greedy = teacher_speech.take_decodings(params(), 0)[0]
    assert (greedy.temperature, greedy.top_p) == (0, 1)
    ids = [teacher.prompt_ids(line.text, line.prompt) for line in some_lines(30)]
    first = teacher_speech.generate(teacher.model, teacher.layout, ids, greedy)
    assert [made[0].codes for made in takes] == [spoken.codes for spoken in first]
    assert all(len({take.codes for take in made}) == len(made) for made in takes)


def take(wer, codes=(1,) * 5, ended=True):
    return Take(codes, ended, "", wer)


def test_the_best_sound_take_stays_and_the_earlier_of_equals():
    first, second, late = (1,) * 6, (2,) * 6, (3,) * 6
    rows = [
        ([take(0.5, first), take(0.25, second), take(0.25, late)], second),
        ([take(0.0, first, ended=False), take(0.25, second)], second),
        ([take(0.0, first[:4]), take(0.2, second), take(0.1, late)], late),
        ([take(0.0, first), take(0.0, second)], first),
    ]
    kept, dropped = keep_best(some_lines(4), [made for made, _ in rows], Demands(0.25, 5), 25.0)
    assert [row.codes for row in kept] == [codes for _, codes in rows]
    assert not dropped
    assert (kept[0].id, kept[0].text, kept[1].voice, kept[0].duration_s) == ("u0-spoken", TEXT, "b", 6 / 25)


def test_lines_without_a_sound_take_are_dropped_and_counted_by_their_nearest_miss():
    rows = [
        [take(0.1), take(0.3)],
        [take(0.0, ended=False), take(0.2)],
        [take(1.0, codes=()), take(1.0)],
        [take(0.1), take(0.0)],
        [take(0.0, codes=(1,) * 4)],
    ]
    kept, dropped = keep_best(some_lines(5), rows, DEMANDS, 25.0)
    assert [row.id for row in kept] == ["u3-spoken"]
    assert dropped == {"spoken_with_errors": 1, "spoken_without_end": 1, "spoken_too_short": 2}


def test_interrupted_and_resumed_equals_uninterrupted_and_speaks_no_group_twice(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_speech, "LINES_A_GROUP", 4)
    whole = StandIn(teacher.codec)
    expected = speak(teacher, 10, tmp_path / "a", whole)
    broken = StandIn(teacher.codec, fails_at=4)  # in the second group
    with pytest.raises(KeyboardInterrupt):
        speak(teacher, 10, tmp_path / "b", broken)
    finished = len(list((tmp_path / "b").glob("group-*")))
    assert finished == 1
    resumed = StandIn(teacher.codec)
    assert speak(teacher, 10, tmp_path / "b", resumed) == expected
    assert resumed.calls == whole.calls[len(whole.calls) - len(resumed.calls) :]
    assert len(resumed.calls) < len(whole.calls) and resumed.calls[0] == 4
    idle = StandIn(teacher.codec)
    assert speak(teacher, 10, tmp_path / "b", idle) == expected and not idle.calls


def test_a_damaged_group_of_kept_takes_is_spoken_again(teacher, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(teacher_speech, "LINES_A_GROUP", 4)
    expected = speak(teacher, 10, tmp_path)
    kept = tmp_path / "group-000004.jsonl"
    content = kept.read_text()
    damaged = content.replace("1", "2", 1)
    assert damaged != content
    kept.write_text(damaged)
    hears = StandIn(teacher.codec)
    assert speak(teacher, 10, tmp_path, hears) == expected
    assert hears.calls and kept.read_text() == content
    assert "group-000004.jsonl is not what was made" in caplog.text


def test_speech_depends_on_the_seed_alone(teacher, tmp_path):
    first, again, other = (
        speak(teacher, 6, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert [made[0].codes for made in first] == [made[0].codes for made in other]  # greedy
    assert [made[1].codes for made in first] != [made[1].codes for made in other]


def candidates(rows):
    return [Candidate(row.id, row.text, row.voice, row.duration_s) for row in rows]


def test_prompts_are_recordings_of_the_voice_with_another_text():
    recorded = {row.id: row for row in tiny_utterances(12)}
    rows = candidates(recorded.values())
    targets = [*rows, *(dataclasses.replace(row, id=f"further-{row.id}") for row in rows)]
    lines = lines_to_speak(targets, rows, recorded, seed=1)
    assert [(line.id, line.text, line.voice) for line in lines] == [(t.id, t.text, t.voice) for t in targets]
    by_codes = {row.codes: row for row in recorded.values()}
    for line in lines:
        source = by_codes[line.prompt.codes]
        assert (source.voice, source.text) == (line.voice, line.prompt.text)
        assert text_key(source.text) != text_key(line.text)
    assert lines_to_speak(targets[::-1], rows[::-1], recorded, seed=1) == lines[::-1]
    assert lines_to_speak(targets, rows, recorded, seed=2) != lines


def test_a_voice_with_one_text_is_prompted_by_it():
    row = tiny_utterances(1)[0]
    (line,) = lines_to_speak(candidates([row]), candidates([row]), {row.id: row}, seed=1)
    assert line.prompt == Prompt(row.text, row.codes, row.voice)


@pytest.mark.parametrize("ids", [("a", "a-spoken"), ("b" * 114, "c")])
def test_an_id_without_room_for_the_spoken_version_is_refused(ids):
    rows = [dataclasses.replace(row, id=name) for row, name in zip(tiny_utterances(2), ids, strict=True)]
    with pytest.raises(InvalidInputError, match=f"utterance '{ids[0]}'"):
        lines_to_speak(candidates(rows), candidates(rows), {row.id: row for row in rows}, seed=1)


# The stage on a corpus of 16 codes, of which the budget holds about 15 of 90 rows.


@pytest.fixture
def small(teacher, tmp_path, monkeypatch):
    rng = random.Random(0)
    rows, codes = [], []
    for index in range(140):
        words = [rng.choice(["anna", "oscar", "emma"]), rng.choice(["found", "took"]), *rng.sample(WORDS, 2)]
        split = ("test", "selection", "train")[min(2, sum(map(len, words)) % 5)]
        rows.append({"id": f"r{index}", "text": " ".join(words) + ".", "voice": rng.choice("ab"), "split": split})
        codes.append(np.array([rng.randrange(NUM_CODES) for _ in range(rng.randint(12, 23))], dtype=np.int16))
    folder = tmp_path / "corpus"
    folder.mkdir()
    np.savez(folder / "codes.npz", codes=np.concatenate(codes), offsets=np.cumsum([0, *map(len, codes)]))
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = dataclasses.replace(teacher, family=TinyFamily(folder, 0.1))
    monkeypatch.setattr(stage, "load_teacher", lambda _, with_model: mine)
    monkeypatch.setattr(stage, "open_recognizer", lambda _: StandIn(mine.codec))
    monkeypatch.setattr(teacher_speech, "LINES_A_GROUP", 16)
    return mine


def run(folder, **values):
    workspace = Workspace(folder)
    report = stage.subset_data(params(max_take_wer=1.0, **values), workspace)
    return workspace, report


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_teachers_speech_replaces_the_recordings_in_train_only(small, tmp_path):
    plain, plain_report = run(tmp_path / "corpus-run", speech="corpus")
    spoken, report = run(tmp_path / "teacher-run")
    recorded = {row.id: row for row in read_utterances(plain.data / "train.jsonl", NUM_CODES)}
    rows = read_utterances(spoken.data / "train.jsonl", NUM_CODES)
    assert rows and all(row.id.endswith("-spoken") for row in rows)
    for row in rows:
        origin = recorded[row.id.removesuffix("-spoken")]
        assert (row.text, row.voice) == (origin.text, origin.voice)
        assert row.codes != origin.codes and row.duration_s == len(row.codes) / 25 >= stage.MIN_SPEECH_S
    assert report.teacher_spoken == len(rows) and plain_report.teacher_spoken == 0
    assert len(rows) + sum(report.dropped.get(reason, 0) for reason in SPOKEN) == len(recorded)
    assert (report.share, report.splits) == (plain_report.share, plain_report.splits)
    assert report.data_sha256 != plain_report.data_sha256
    for name in ("selection.jsonl", "test.jsonl", "prompts.json"):
        assert (spoken.data / name).read_bytes() == (plain.data / name).read_bytes()
    for split in ("selection", "test"):
        assert speaking_tasks(spoken, split, 99) == speaking_tasks(plain, split, 99)
    assert SubsetReport.read(spoken.data / "report.json") == report


def test_both_holds_recordings_and_the_teachers_speech(small, tmp_path):
    plain, _ = run(tmp_path / "a", speech="corpus")
    spoken, _ = run(tmp_path / "b", speech="teacher")
    both, report = run(tmp_path / "c", speech="both")
    lines = [(w.data / "train.jsonl").read_text() for w in (plain, spoken, both)]
    assert lines[0] + lines[1] == lines[2]
    assert report.teacher_spoken == len(lines[1].splitlines()) > 0
    assert speaking_tasks(both, "test", 99) == speaking_tasks(plain, "test", 99)
    assert not (both.data / "recorded.jsonl").exists()


def test_held_out_texts_are_never_spoken_and_their_recordings_prompt_nothing(small, tmp_path, monkeypatch):
    said = []

    def spy(model, layout, ids, decoding):
        said.extend(small.tokenizer.decode([i for i in row if i < layout.first_code_id]) for row in ids)
        return generate(model, layout, ids, decoding)

    generate = teacher_speech.generate
    monkeypatch.setattr(teacher_speech, "generate", spy)
    workspace, report = run(tmp_path / "run", extra_texts=20)
    held_out = [row.text for name in ("selection", "test") for row in read_utterances(workspace.data / f"{name}.jsonl")]
    train_texts = {row.text for row in read_utterances(workspace.data / "train.jsonl")}
    assert len(held_out) == 10 and len(said) > report.splits["train"].utterances
    assert not [text for text in held_out if any(text in spoken for spoken in said)]
    assert all(any(text in spoken for spoken in said) for text in train_texts)


def test_extra_texts_are_spoken_without_their_recordings_and_cost_no_hours(small, tmp_path):
    _, few = run(tmp_path / "a", teacher_takes=4)
    workspace, many = run(tmp_path / "b", teacher_takes=4, extra_texts=12)
    recorded = {row.id for row in read_utterances(run(tmp_path / "c", speech="corpus")[0].data / "train.jsonl")}
    origins = {row.id.removesuffix("-spoken") for row in read_utterances(workspace.data / "train.jsonl")}
    assert few.teacher_spoken < many.teacher_spoken <= few.splits["train"].utterances + 12
    assert 0 < len(origins - recorded) <= 12
    assert (many.share, many.splits) == (few.share, few.splits)


def test_further_speech_is_the_recordings_and_the_teacher_on_other_texts_alone(small, tmp_path):
    workspace, report = run(tmp_path / "a", speech="further", teacher_takes=4, extra_texts=12)
    recorded = {row.id for row in read_utterances(run(tmp_path / "b", speech="corpus")[0].data / "train.jsonl")}
    train = {row.id for row in read_utterances(workspace.data / "train.jsonl")}
    assert recorded < train and len(train - recorded) == report.teacher_spoken > 0
    assert not {row.removesuffix("-spoken") for row in train - recorded} & recorded
    with pytest.raises(InvalidInputError, match="further with no text beside the recordings"):
        run(tmp_path / "c", speech="further")


def test_of_a_small_source_every_text_is_spoken(small, tmp_path):
    _, few = run(tmp_path / "a", extra_texts=12)
    workspace, all_of_them = run(tmp_path / "b", extra_texts=100_000)
    assert all_of_them.teacher_spoken > few.teacher_spoken
    spoken = {row.id for row in read_utterances(workspace.data / "train.jsonl")}
    assert len(spoken) == all_of_them.teacher_spoken


def test_nothing_usable_is_one_line_and_keeps_the_former_data(small, tmp_path, monkeypatch):
    workspace, _ = run(tmp_path / "run")
    former = contents(workspace.data)
    monkeypatch.setattr(StandIn, "transcribe", lambda self, waves, rate_hz: ["wrong " * 9] * len(waves))
    with pytest.raises(InvalidInputError) as error:
        run(tmp_path / "run", seed=5)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("subset_data.speech: observed no usable take of ")
    assert contents(workspace.data) == former


def test_an_interrupted_stage_goes_on_and_ends_as_if_nothing_had_happened(small, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_speech, "LINES_A_GROUP", 6)
    workspace, _ = run(tmp_path / "whole")
    monkeypatch.setattr(stage, "open_recognizer", lambda _: StandIn(small.codec, fails_at=3))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken")
    broken = Workspace(tmp_path / "broken")
    finished = {path.name: path.stat().st_mtime_ns for path in broken.speaking_progress.glob("*/group-*")}
    assert finished and not broken.data.exists()
    monkeypatch.setattr(stage, "open_recognizer", lambda _: StandIn(small.codec))
    run(tmp_path / "broken")
    assert contents(broken.data) == contents(workspace.data)
    now = {path.name: path.stat().st_mtime_ns for path in broken.speaking_progress.glob("*/group-*")}
    assert finished.items() < now.items()


def test_progress_serves_stricter_judgement_and_no_other_speech(small, tmp_path):
    workspace, _ = run(tmp_path / "run")
    (former,) = workspace.speaking_progress.iterdir()
    lenient = params(max_take_wer=0.99)
    stage.subset_data(lenient, workspace)
    assert list(workspace.speaking_progress.iterdir()) == [former]
    run(tmp_path / "run", teacher_temperature=0.9)
    assert len(list(workspace.speaking_progress.iterdir())) == 1 and not former.exists()


def test_the_teachers_speech_can_be_trained_on(small, tmp_path):
    workspace, _ = run(tmp_path / "run")
    utterances = read_utterances(workspace.data / "train.jsonl", NUM_CODES)
    knobs = SHIPPED.distill_student.model_copy(update={"steps": 12, "tokens_per_step": 256, "device": "cpu"})
    sampler = PairSampler(small, utterances, knobs.tokens_per_step, seed=1)
    model = load_language_model(small.folder)
    loss = HealingLoss(PRESETS["cross_entropy"], small.layout)
    job = TrainingJob("student", model, loss, sampler.from_step, tmp_path / "training", "mark", 1e-3)
    report = train(job, knobs, torch.device("cpu"), lambda _: None)
    curve = [json.loads(line)["loss"] for line in (tmp_path / "training" / "curves.jsonl").read_text().splitlines()]
    assert report.steps == 12
    assert np.mean(curve[-3:]) < np.mean(curve[:3])


def in_language(language):
    shipped = params()
    return shipped.model_copy(update={"teacher": shipped.teacher.model_copy(update={"language": language})})


@pytest.mark.parametrize(
    ("text", "heard", "language", "wer"),
    [
        ("Mr. Brown paid fifty dollars.", "Mister Brown paid $50.", "en", 0.0),
        ("Mister Brown paid fifty dollars.", "Mr. Brown paid 50 dollars.", "en", 0.0),
        ("he left", "um, he left", "en", 0.5),
        ("Er zahlt fünfzig", "Er zahlt 50", "de", 1 / 3),
        ("今天很好", "今天很坏", "zh", 0.25),  # characters where words are not written apart
    ],
)
def test_a_perfect_reading_is_not_lost_to_how_the_recogniser_writes(text, heard, language, wer):
    assert teacher_speech.take_wer(text, heard, WordCounter.of(in_language(language))) == pytest.approx(wer)


def test_what_was_lost_to_word_errors_is_shown():
    heard = Take((1,) * 6, True, "wrong", 0.75)
    rows = [[heard], [take(0.0)], [take(0.0, ended=False)]]
    assert teacher_speech.misread(some_lines(3), rows, DEMANDS, 5) == [(TEXT, "wrong")]
    assert teacher_speech.misread(some_lines(3), [[heard]] * 3, DEMANDS, 2) == [(TEXT, "wrong")] * 2
