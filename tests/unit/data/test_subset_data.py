import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import soundfile
from pyarrow import parquet

from slimtts.data import code_cache
from slimtts.data.manifest import Utterance, data_sha256, read_utterances
from slimtts.data.texts import text_key
from slimtts.data.token_corpus import load_token_corpus
from slimtts.errors import InvalidInputError
from slimtts.params import Params, load_params
from slimtts.results import SubsetReport
from slimtts.stages import subset_data as stage
from slimtts.testing.tiny import TinyFamily
from slimtts.workspace import Workspace

SHIPPED = Path(__file__).parents[3] / "params.yaml"
FILES = {"train.jsonl", "selection.jsonl", "test.jsonl", "prompts.json", "report.json"}


def run_params(**values: object) -> Params:
    shipped = load_params(SHIPPED)
    wanted = {"speech": "corpus", "extra_texts": 0, "selection_utterances": 5, "test_utterances": 8, **values}
    return shipped.model_copy(update={"subset_data": shipped.subset_data.model_copy(update=wanted)})


@pytest.fixture
def workspace(tmp_path: Path, teacher, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    def load_teacher(params, with_model: bool):
        assert not with_model
        return teacher

    def open_recognizer(params):
        raise AssertionError("nobody speaks, so nobody listens")

    monkeypatch.setattr(stage, "load_teacher", load_teacher)
    monkeypatch.setattr(stage, "open_recognizer", open_recognizer)
    return Workspace(tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_bundled_corpus_becomes_three_splits(workspace: Workspace, token_corpus: Path) -> None:
    report = stage.subset_data(run_params(), workspace)
    assert {path.name for path in workspace.data.iterdir()} == FILES
    assert SubsetReport.read(workspace.data / "report.json") == report
    assert report.teacher_spoken == 0 and not list(workspace.speaking_progress.iterdir())
    corpus = load_token_corpus(token_corpus)
    source = {row["id"]: (row, tuple(corpus.codes_of(i).tolist())) for i, row in enumerate(corpus.rows)}
    splits = {name: read_utterances(workspace.data / f"{name}.jsonl", 4096) for name in report.splits}
    assert (len(splits["selection"]), len(splits["test"])) == (5, 8)
    for name, rows in splits.items():
        assert report.splits[name].utterances == len(rows)
        assert report.splits[name].hours == pytest.approx(sum(row.duration_s for row in rows) / 3600)
        for row in rows:
            origin, codes = source[row.id]
            assert (origin["split"], origin["text"], origin["voice"]) == (name, row.text, row.voice)
            assert codes == row.codes and row.duration_s == len(codes) / 25
    assert report.share == pytest.approx(report.splits["train"].hours / 5.0) and report.share <= 0.045
    assert report.data_sha256 == data_sha256(workspace.data)
    prompts = json.loads((workspace.data / "prompts.json").read_text())
    train = {row.id: row for row in splits["train"]}
    for row in [*splits["selection"], *splits["test"]]:
        prompt = train[prompts.pop(row.id)]
        assert prompt.voice == row.voice and text_key(prompt.text) != text_key(row.text)
    assert not prompts


def test_two_runs_write_the_same_bytes(workspace: Workspace) -> None:
    stage.subset_data(run_params(), workspace)
    former = contents(workspace.data)
    stage.subset_data(run_params(), workspace)
    assert contents(workspace.data) == former
    other_seed = stage.subset_data(run_params(seed=2), workspace)
    assert other_seed.data_sha256 != json.loads(former["report.json"])["data_sha256"]


def test_knobs_of_the_teachers_speech_change_nothing_while_it_is_silent(workspace: Workspace) -> None:
    stage.subset_data(run_params(), workspace)
    former = contents(workspace.data)
    stage.subset_data(run_params(teacher_takes=7, teacher_temperature=1.5, max_take_wer=1.0, extra_texts=9), workspace)
    assert contents(workspace.data) == former


def test_a_report_from_before_the_teacher_spoke_can_be_read(workspace: Workspace) -> None:
    report = stage.subset_data(run_params(), workspace)
    path = workspace.data / "report.json"
    values = json.loads(path.read_text())
    del values["teacher_spoken"]
    path.write_text(json.dumps(values))
    assert SubsetReport.read(path) == report


def test_utterances_that_decoding_would_cut_are_dropped(workspace: Workspace) -> None:
    params = run_params()
    params = params.model_copy(update={"decoding": params.decoding.model_copy(update={"max_new_tokens": 60})})
    report = stage.subset_data(params, workspace)
    assert report.dropped["too_long"] > 0
    for name in report.splits:
        assert all(len(row.codes) < 60 for row in read_utterances(workspace.data / f"{name}.jsonl"))


def test_a_teacher_without_corpus_needs_a_manifest(workspace: Workspace, teacher, monkeypatch, one_line) -> None:
    object.__setattr__(teacher, "family", TinyFamily())
    with pytest.raises(InvalidInputError) as error:
        stage.subset_data(run_params(), workspace)
    assert "manifest.jsonl" in one_line(error.value)


def damage_nothing_left(folder: Path) -> None:
    (folder / "codes.npz").unlink()


def damage_truncated(folder: Path) -> None:
    (folder / "codes.npz").write_bytes((folder / "codes.npz").read_bytes()[:-200])


def damage_row_missing(folder: Path) -> None:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    (folder / "manifest.jsonl").write_text("\n".join(lines[:-1]))


def damage_key_missing(folder: Path) -> None:
    (folder / "manifest.jsonl").write_text((folder / "manifest.jsonl").read_text().replace('"voice"', '"vioce"'))


def damage_unknown_code(folder: Path) -> None:
    packed = dict(np.load(folder / "codes.npz"))
    packed["codes"][7] = 5000
    np.savez(folder / "codes.npz", **packed)


@pytest.mark.parametrize(
    "damage", [damage_nothing_left, damage_truncated, damage_row_missing, damage_key_missing, damage_unknown_code]
)
def test_a_damaged_corpus_is_one_line_and_keeps_the_former_data(
    workspace: Workspace, token_corpus: Path, one_line, damage
) -> None:
    stage.subset_data(run_params(), workspace)
    former = contents(workspace.data)
    damage(token_corpus)
    with pytest.raises(InvalidInputError) as error:
        stage.subset_data(run_params(), workspace)
    one_line(error.value)
    assert contents(workspace.data) == former
    assert {path.name for path in workspace.root.iterdir()} == {"data", "progress"}


def write_manifest(folder: Path, count: int = 30) -> Path:
    """Audio at two rates, mono and stereo, and rows that are codes already."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        row: dict[str, object] = {"id": f"r{index}", "text": f"sentence number {index}", "voice": "ab"[index % 2]}
        if index % 3 == 0:
            row["codes"] = [int(code) for code in rng.integers(0, 4096, 40)]
        else:
            rate_hz = 16_000 if index % 3 == 1 else 24_000
            samples = rng.uniform(-0.5, 0.5, (int(1.5 * rate_hz), 1 + index % 2)).astype(np.float32)
            soundfile.write(folder / f"{index}.wav", samples, rate_hz)
            row |= {"audio": f"{index}.wav", "sample_rate_hz": rate_hz}
        rows.append(row)
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def test_a_manifest_of_audio_and_codes_is_encoded(workspace: Workspace, codec) -> None:
    manifest = write_manifest(workspace.root / "mine")
    report = stage.subset_data(run_params(source="mine/manifest.jsonl", strategy="balanced"), workspace)
    given = {row["id"]: row for row in map(json.loads, manifest.read_text().splitlines())}
    rows: list[Utterance] = []
    for name in report.splits:
        rows += read_utterances(workspace.data / f"{name}.jsonl", codec.num_codes)
    assert len(rows) == len({row.id for row in rows}) > 20
    for row in rows:
        if "codes" in given[row.id]:
            assert list(row.codes) == given[row.id]["codes"]
        else:
            assert len(row.codes) == 38 and row.duration_s == pytest.approx(1.5)  # ceil(1.5 s * 25/s)


@pytest.mark.parametrize("bad", [float("nan"), "missing"])
def test_bad_audio_stops_the_stage_and_writes_nothing(workspace: Workspace, one_line, bad: float | str) -> None:
    manifest = write_manifest(workspace.root / "mine")
    for path in manifest.parent.glob("*.wav"):
        if bad == "missing":
            path.unlink()
        else:
            soundfile.write(path, np.full(24_000, bad, dtype=np.float32), soundfile.info(path).samplerate, "FLOAT")
    with pytest.raises(InvalidInputError) as error:
        stage.subset_data(run_params(source=str(manifest)), workspace)
    assert "utterance 'r" in one_line(error.value)
    assert not workspace.data.exists() and not list(workspace.root.rglob("codes-*"))


def test_an_empty_or_missing_manifest_is_one_line(workspace: Workspace, one_line) -> None:
    workspace.root.mkdir()
    for source in ("missing.jsonl", "empty.jsonl"):
        (workspace.root / "empty.jsonl").touch()
        with pytest.raises(InvalidInputError) as error:
            stage.subset_data(run_params(source=source), workspace)
        assert source in one_line(error.value)


def test_encoding_goes_on_after_a_kill_and_a_second_run_encodes_nothing(
    workspace: Workspace, codec, teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_cache, "ROWS_A_SHARD", 4)
    manifest = write_manifest(workspace.root / "mine")
    params = run_params(source=str(manifest), strategy="balanced")
    stage.subset_data(params, workspace)
    expected = contents(workspace.data)
    again = Workspace(workspace.root.parent / "again")
    calls: list[int] = []

    class Killed:
        sample_rate_hz, frame_rate_hz, num_codes = codec.sample_rate_hz, codec.frame_rate_hz, codec.num_codes
        network = codec
        fails_at: int | None = 2

        def encode(self, waves):
            if len(calls) == self.fails_at:
                raise KeyboardInterrupt
            calls.append(len(waves))
            return codec.encode(waves)

    killed = Killed()
    object.__setattr__(teacher, "codec", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.subset_data(params, again)
    assert not again.data.exists() and list(again.encoding_progress.glob("*/codes-*.npz"))
    killed.fails_at = None
    stage.subset_data(params, again)
    assert contents(again.data) == expected
    assert sum(calls) <= 20 + 4  # the shard that was interrupted is the only one that is encoded twice
    calls.clear()
    stage.subset_data(params, again)
    assert contents(again.data) == expected and not calls


def test_bad_audio_is_dropped_and_the_next_best_is_chosen(workspace: Workspace) -> None:
    manifest = write_manifest(workspace.root / "mine")
    sound = stage.subset_data(run_params(source=str(manifest), strategy="balanced"), workspace)
    for name, samples in (("1", np.full(24_000, np.nan)), ("2", np.zeros(100))):
        path = manifest.parent / f"{name}.wav"
        soundfile.write(path, samples.astype(np.float32), soundfile.info(path).samplerate, "FLOAT")
    (manifest.parent / "4.wav").unlink()
    params = run_params(source=str(manifest), strategy="balanced", on_bad_audio="drop")
    report = stage.subset_data(params, workspace)
    assert report.dropped == {**sound.dropped, "audio_not_finite": 1, "audio_too_short": 1, "audio_missing": 1}
    assert (report.splits["selection"].utterances, report.splits["test"].utterances) == (5, 8)
    rows = [row for name in report.splits for row in read_utterances(workspace.data / f"{name}.jsonl")]
    assert len(rows) == 27 and not {"r1", "r2", "r4"} & {row.id for row in rows}


def test_every_kind_of_source_gives_the_same_data(workspace: Workspace) -> None:
    manifest = write_manifest(workspace.root / "mine")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    names = ("id", "text", "voice", "audio", "codes", "sample_rate_hz")
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    parquet.write_table(table, manifest.with_suffix(".parquet"))
    stage.subset_data(run_params(source="mine/manifest.jsonl"), workspace)
    expected = contents(workspace.data)
    stage.subset_data(run_params(source="mine/manifest.parquet"), workspace)
    assert contents(workspace.data) == expected


def test_texts_that_the_family_cannot_read_are_dropped_and_counted(workspace, token_corpus, monkeypatch) -> None:
    corpus = load_token_corpus(token_corpus)
    foreign = {row["text"] for row in corpus.rows[:3]}
    monkeypatch.setattr(TinyFamily, "unreadable", lambda _, text: text if text in foreign else "", raising=False)
    report = stage.subset_data(run_params(), workspace)
    assert report.dropped["text_unreadable"] == sum(row["text"] in foreign for row in corpus.rows)
    written = [row.text for split in report.splits for row in read_utterances(workspace.data / f"{split}.jsonl", 4096)]
    assert written and not foreign & set(written)
