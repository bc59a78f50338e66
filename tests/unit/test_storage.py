import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slimtts.storage import atomic_path


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def write_file(path: Path, text: str) -> None:
    path.write_text(text)


def write_folder(path: Path, text: str) -> None:
    path.mkdir()
    (path / f"{text}.txt").write_text(text)


KINDS = pytest.mark.parametrize("write", [write_file, write_folder])


@KINDS
def test_new_content_takes_the_place_of_the_former(tmp_path: Path, write) -> None:
    final = tmp_path / "deep" / "out"
    for text in ("former", "new"):
        with atomic_path(final) as tmp:
            write(tmp, text)
            assert not (final.exists() and "new" in tree(tmp_path / "deep").get("out", ""))
    assert set(tree(tmp_path).values()) == {"new"}
    assert [path.name for path in final.parent.iterdir()] == ["out"]


@KINDS
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_error_in_the_block_keeps_the_former(tmp_path: Path, write, error: BaseException) -> None:
    with atomic_path(tmp_path / "out") as tmp:
        write(tmp, "former")
    before = tree(tmp_path)
    with pytest.raises(type(error)), atomic_path(tmp_path / "out") as tmp:
        write(tmp, "half")
        raise error
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"), atomic_path(tmp_path / "out") as tmp:
        write_folder(tmp, "half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_rename_brings_the_former_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_path(tmp_path / "out") as tmp:
        write_folder(tmp, "former")

    def fail(self: Path, target: Path) -> Path:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="Input/output"), atomic_path(tmp_path / "out") as tmp:
        write_folder(tmp, "new")
    assert tree(tmp_path) == {"out/former.txt": "former"}


@KINDS
def test_a_kill_in_the_block_keeps_the_former(tmp_path: Path, write) -> None:
    with atomic_path(tmp_path / "out") as tmp:
        write(tmp, "former")
    make = "tmp.mkdir(); tmp = tmp / 'half.txt'" if write is write_folder else "pass"
    script = f"""
import os, signal, sys
from pathlib import Path
from slimtts.storage import atomic_path
with atomic_path(Path(sys.argv[1])) as tmp:
    {make}
    stream = tmp.open("w")
    stream.write("half")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    source = str(Path(sys.modules[atomic_path.__module__].__file__ or "").parents[1])
    child = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out")], env={**os.environ, "PYTHONPATH": source}, check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert {k: v for k, v in tree(tmp_path).items() if k.startswith("out")} in (
        {"out": "former"}, {"out/former.txt": "former"},
    )  # fmt: skip
    with atomic_path(tmp_path / "out") as tmp:
        write(tmp, "new")
    assert {v for k, v in tree(tmp_path).items() if k.startswith("out")} == {"new"}


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_former(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("former")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "out"):
        pass
    assert tree(tmp_path) == {"out": "former"}


def test_a_link_is_replaced_and_its_target_is_left_alone(tmp_path: Path) -> None:
    write_folder(tmp_path / "target", "kept")
    (tmp_path / "out").symlink_to(tmp_path / "target")
    with atomic_path(tmp_path / "out") as tmp:
        write_folder(tmp, "new")
    assert tree(tmp_path) == {"target/kept.txt": "kept", "out/new.txt": "new"}
    assert not (tmp_path / "out").is_symlink()
