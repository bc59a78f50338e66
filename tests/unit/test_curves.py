"""The curve of a training: a damaged line costs a point, never the training, and no step is listed twice."""

import json

import pytest

from slimtts.curves import cut_curve, read_points


def line(step, name="student", **values):
    return json.dumps({"name": name, "step": step, "loss": 3.0 - step} | values) + "\n"


DAMAGED = [
    "not json}\n", '{"name": "student"}\n', '{"name": "student", "step": "2", "loss": 1}\n', '{"step": 2}\n',
    '{"name": "student", "step": true}\n', '{"name": "student", "step": -1}\n', "[]\n", "null\n", "\n", "}\n",
    '{"a":' * 10_000 + "}\n", "\x00" * 50 + "\n",
]  # fmt: skip


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_line_is_left_out_wherever_it_is(tmp_path, caplog, damaged):
    path = tmp_path / "curves.jsonl"
    for lines in ([damaged, line(0), line(1)], [line(0), damaged, line(1)], [line(0), line(1), damaged]):
        path.write_text("".join(lines))
        cut_curve(path, 2)
        assert path.read_text() == line(0) + line(1)
    assert caplog.text.count("1 damaged lines are left out of the curve") == 3


def test_steps_from_the_checkpoint_on_go_and_no_step_stays_twice(tmp_path):
    path = tmp_path / "curves.jsonl"
    path.write_text(line(0) + line(1) + line(1, loss=9.0) + line(2) + line(3))
    cut_curve(path, 3)
    assert path.read_text() == line(0) + line(1) + line(2)
    cut_curve(path, 3)
    assert path.read_text() == line(0) + line(1) + line(2)


def test_bytes_that_are_no_text_a_missing_file_and_a_folder(tmp_path):
    path = tmp_path / "curves.jsonl"
    path.write_bytes(line(0).encode() + b"\xff\xfe\x00\n" + line(1).encode())
    assert [point["step"] for point in read_points(path)[0]] == [0, 1]
    path.unlink()
    cut_curve(path, 5)
    assert path.read_text() == ""
    path.unlink()
    path.mkdir()
    cut_curve(path, 5)
    assert path.read_text() == ""


def test_a_last_line_that_is_still_being_written_waits(tmp_path):
    path = tmp_path / "curves.jsonl"
    path.write_text(line(0) + line(1)[:-8])
    assert read_points(path) == ([json.loads(line(0))], 0)
