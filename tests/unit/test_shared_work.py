"""Items are made once, whoever makes them; a killed process's item is made by another."""

import signal
import subprocess
import sys
import threading

import pytest

from slimtts import shared_work
from slimtts.shared_work import make_items, progress_of

MAKER = """
import sys, time
from pathlib import Path
from slimtts import shared_work
from slimtts.shared_work import make_items

folder, log = Path(sys.argv[1]), Path(sys.argv[2])

def make(name, out):
    with log.open("a") as stream:
        stream.write(f"{name} {sys.argv[3]}\\n")
    print(name, flush=True)
    time.sleep(float(sys.argv[4]))
    out.write_text(name)

make_items(folder, {name: lambda out, name=name: make(name, out) for name in ("a", "b", "c", "d")})
"""


def start(folder, log, who, seconds):
    command = [sys.executable, "-c", MAKER, str(folder), str(log), who, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_make_each_item_once(tmp_path):
    makers = [start(tmp_path / "items", tmp_path / "log", who, 0.2) for who in "12"]
    assert [maker.wait(60) for maker in makers] == [0, 0]
    made = (tmp_path / "log").read_text().split()
    assert sorted(made[::2]) == ["a", "b", "c", "d"]
    assert {path.name: path.read_text() for path in (tmp_path / "items").glob("?")} == {n: n for n in "abcd"}


def test_the_item_of_a_killed_process_is_made_by_another(tmp_path):
    killed = start(tmp_path / "items", tmp_path / "log", "killed", 300)
    assert killed.stdout.readline() == "a\n"
    other = start(tmp_path / "items", tmp_path / "log", "other", 0)
    assert [other.stdout.readline() for _ in range(3)] == ["b\n", "c\n", "d\n"]
    assert other.poll() is None, "it waits for the one that is being made"
    killed.send_signal(signal.SIGKILL)
    assert other.wait(60) == 0
    assert (tmp_path / "log").read_text().splitlines() == ["a killed", "b other", "c other", "d other", "a other"]
    assert (tmp_path / "items" / "a").read_text() == "a"


def test_items_that_are_there_are_only_told_of(tmp_path):
    make_items(tmp_path, {"a": lambda out: out.write_text("former")})
    told = []
    make_items(tmp_path, {name: lambda out: out.mkdir() for name in "ab"}, told.append)
    assert told == ["a", "b"]
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").is_dir()) == ("former", True)


def test_an_item_whose_making_fails_is_free_again(tmp_path):
    def fails(out):
        out.write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        make_items(tmp_path, {"a": fails})
    assert not (tmp_path / "a").exists()
    done = threading.Thread(target=make_items, args=(tmp_path, {"a": lambda out: out.write_text("whole")}))
    done.start()
    done.join(10)
    assert (tmp_path / "a").read_text() == "whole"


def write_folder(out):
    (out / "deep").mkdir(parents=True)
    (out / "heard.json").write_text('{"wer": 0.25}')
    (out / "deep" / "codes.json").write_text("[1, 2, 3]")


DAMAGE = {
    "a flipped bit": lambda item: (item / "heard.json").write_text('{"wer": 0.35}'),
    "a truncated file": lambda item: (item / "deep" / "codes.json").write_text("[1, 2"),
    "an empty file": lambda item: (item / "heard.json").write_text(""),
    "a missing file": lambda item: (item / "heard.json").unlink(),
    "a strange file": lambda item: (item / "more.json").write_text("{}"),
    "hashes of nothing": lambda item: (item.parent / ".hashes" / "a.json").write_text("{}"),
    "damaged hashes": lambda item: (item.parent / ".hashes" / "a.json").write_bytes(b"\xff{"),
    "no hashes, as an earlier version left it": lambda item: (item.parent / ".hashes" / "a.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_an_item_that_is_not_what_was_made_is_made_again_with_one_line(tmp_path, caplog, damage):
    made = []

    def make(out):
        made.append(out)
        write_folder(out)

    make_items(tmp_path, {"a": make})
    damage(tmp_path / "a")
    make_items(tmp_path, {"a": make})
    assert len(made) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{tmp_path / 'a'} is not what was made" in caplog.text
    found = {path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert found == {"heard.json", "deep/codes.json"}
    make_items(tmp_path, {"a": make})
    assert len(made) == 2, "what was made again is believed"


def test_a_file_in_the_place_of_a_folder_and_the_other_way_round_are_made_again(tmp_path):
    (tmp_path / "a").write_text("a file")
    (tmp_path / "b" / "inner").mkdir(parents=True)
    make_items(tmp_path, {"a": write_folder, "b": lambda out: out.write_text("b")})
    assert (tmp_path / "a" / "heard.json").is_file() and (tmp_path / "b").read_text() == "b"


def test_progress_belongs_to_its_measurement_and_its_code(tmp_path, monkeypatch):
    package, root = tmp_path / "package", tmp_path / "progress"
    (package / "scoring").mkdir(parents=True)
    (package / "scoring" / "a.py").write_text("1")
    (package / "other.py").write_text("1")
    monkeypatch.setattr(shared_work, "PACKAGE", package)
    first = progress_of(root, ["scoring"], "knobs", 1)
    (first / "item").touch()
    (root / "a stray file").touch()
    (package / "other.py").write_text("2")
    assert progress_of(root, ["scoring"], "knobs", 1) == first and (first / "item").exists()
    (package / "scoring" / "a.py").write_text("2")
    edited = progress_of(root, ["scoring"], "knobs", 1)
    assert [path.name for path in root.iterdir()] == [edited.name] != [first.name]
    assert progress_of(root, ["scoring", "other.py"], "knobs", 1) != edited
    assert progress_of(root, ["scoring"], "knobs", 2) not in (first, edited)
