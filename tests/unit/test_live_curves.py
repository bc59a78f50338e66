"""Curves are found where a training writes them, and a damaged line keeps none of the others from being shown."""

from slimtts.workspace import Workspace
from tasks.live_curves import curve_files, curve_points

POINT = '{"name": "student", "step": %d, "loss": 1.5, "note": "text"}\n'


def test_the_curve_of_a_training_under_way_is_found_below_its_parameters(tmp_path):
    workspace = Workspace(tmp_path)
    path = workspace.checkpoints / "student" / "0123456789abcdef" / "curves.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(POINT % 0 + "damaged}\n" + POINT % 1 + POINT % 2)
    assert curve_files(workspace) == [path]
    assert list(curve_points([path])) == [("student/loss", step, 1.5) for step in range(3)]
