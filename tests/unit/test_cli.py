"""The command line: instant help, one-line errors, one writer at a time."""

import errno
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slimtts.cli import main
from slimtts.commands.catalogue import COMMANDS
from slimtts.errors import refusal_of_system
from slimtts.workspace import STAGES


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "slimtts.cli", *arguments], capture_output=True, text=True, timeout=120, **options
    )


def test_help_names_every_stage_and_loads_nothing_heavy():
    code = (
        "import sys; from slimtts.commands.catalogue import build_parser; print(build_parser().format_help());"
        "print([m for m in ('torch', 'transformers', 'mlflow', 'numpy', 'pydantic') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    told = [line.split()[0] for line in shown.splitlines() if line.startswith("  ") and not line.startswith("  -")]
    assert told == list(COMMANDS)
    assert told[:8] == ["compress", "plan", *STAGES], "in the order of the work"
    assert shown.strip().endswith("[]")


def test_a_shell_can_complete_commands_and_options():
    script = run("completion", "bash").stdout

    def completed(*words):
        asked = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_slimtts; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, timeout=20)
        return done.stdout.split()

    assert completed("slimtts", "pr") == ["prune_layers", "promote"]
    assert completed("slimtts", "say", "--vo") == ["--voice"]


def test_a_result_is_json_for_programs(tmp_path):
    done = run("say", "tiger", "--json", "--out", str(tmp_path / "a.wav"))
    assert json.loads(done.stdout)["path"] == str(tmp_path / "a.wav")


def test_only_shared_stages_help_out(capsys):
    assert main(["prune_layers", "--help-out"]) == 2
    assert "allowed: score_layers, evaluate_student" in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_workspace_is_one_line(stage, tmp_path, capsys):
    assert main([stage, "--params", str(tmp_path / "params.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("slimtts: ")
    assert "observed no such file" in error
    assert error.count("\n") == 1


def test_a_typo_in_params_names_the_key(tmp_path):
    (tmp_path / "params.yaml").write_text("teacher: {famly: nano}\n")
    done = run("prune_layers", "--workspace", str(tmp_path))
    assert done.returncode == 2
    assert "teacher.famly is not a known key" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import sys, time; from pathlib import Path; from slimtts.process_guard import sole_writer\n"
         "with sole_writer(Path(sys.argv[1]), 'prune_layers'): print('held', flush=True); time.sleep(60)",
         str(tmp_path)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        from slimtts.process_guard import WorkspaceBusyError, sole_writer

        with pytest.raises(WorkspaceBusyError, match="observed another process writing it"):
            sole_writer(tmp_path, "prune_layers").__enter__()
        holder.kill()
        holder.wait()
        with sole_writer(tmp_path, "prune_layers"):
            pass
    finally:
        holder.kill()


def test_a_stage_dies_with_its_parent(tmp_path):
    child = (
        "import os, time; from slimtts.process_guard import die_with_parent; die_with_parent();"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c",
         f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20

    def alive():
        stat = Path(f"/proc/{pid}/stat")
        return stat.exists() and stat.read_text().split()[2] not in "ZX"

    while alive():
        assert time.monotonic() < deadline, "the stage outlived its parent"
        time.sleep(0.1)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    import errno

    import slimtts.commands.stage

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(slimtts.commands.stage, "run_stage", full)
    assert main(["prune_layers"]) == 2
    assert "observed no space left on the disk" in capsys.readouterr().err


def test_a_full_disk_is_known_by_the_text_of_safetensors_too():
    full = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "observed no space left on the disk" in str(refusal_of_system(full, "distill_student"))
    assert refusal_of_system(RuntimeError("os error"), "say") is None
    assert refusal_of_system(FileNotFoundError(2, "No such file"), "say") is None


@pytest.mark.parametrize(
    ("code", "observed"),
    [
        (errno.EACCES, "Permission denied"),
        (errno.EROFS, "Read-only file system"),
        (errno.ENAMETOOLONG, "File name too long"),
        (errno.ENOTDIR, "Not a directory"),
    ],
)
def test_a_place_that_the_system_refuses_is_one_line(monkeypatch, capsys, code, observed):
    import slimtts.commands.stage

    def refuse(*_):
        raise OSError(code, "x", "/run/student")

    monkeypatch.setattr(slimtts.commands.stage, "run_stage", refuse)
    assert main(["distill_student"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"slimtts: /run/student: observed {observed}; allowed: ") and told.count("\n") == 1


def test_a_workspace_in_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    params = Path(__file__).parents[2] / "params.yaml"
    assert main(["prune_layers", "--workspace", str(tmp_path / "file"), "--params", str(params)]) == 2
    assert "observed Not a directory; allowed: folders on the way to it" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    import slimtts.commands.stage

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(slimtts.commands.stage, "run_stage", interrupted)
    assert main(["distill_student"]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err


COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = [
    "--set", "distill_student.optimizer=adamw",
    "--set", "distill_student.learning_rate=0.0001",
    "--set", "distill_student.control_learning_rate=1.0e-05",
]  # fmt: skip


@pytest.fixture
def compressed(monkeypatch):
    """The settings and name that `slimtts compress` hands to the flow."""
    import slimtts.commands.catalogue
    import slimtts.commands.compress

    def compress(*arguments):
        executed = []
        monkeypatch.chdir(".")  # brings the folder back that the command leaves
        options = slimtts.commands.catalogue.build_parser().parse_args(["compress", *arguments])
        slimtts.commands.compress.compress(options, lambda program, command: executed.append((program, command)))
        ((program, command),) = executed
        assert (program, command[:3]) == (sys.executable, [sys.executable, "-m", "flows.compress_model"])
        assert Path("flows/compress_model.py").is_file(), "it runs in the checkout"
        return command[3:]

    return compress


def test_compress_builds_the_command_of_the_flow(compressed, tmp_path, monkeypatch, capsys):
    from slimtts.testing.families import write_teacher_folder

    write_teacher_folder("orpheus", tmp_path / "Orpheus 3b", 21)
    (tmp_path / "data.jsonl").write_text("")
    (tmp_path / "codec").mkdir()
    monkeypatch.chdir(tmp_path)
    given = ["--teacher", "Orpheus 3b", "--data", "data.jsonl", "--codec", "codec", "--profile", "full"]
    assert compressed(*given, "--set", "distill_student.steps=3", "--set", "recogniser.model=tiny.en") == [
        "--name", "Orpheus-3b", "--profile", "full",
        "--set", "teacher.family=orpheus",
        "--set", f"teacher.source={tmp_path / 'Orpheus 3b'}",
        "--set", f"teacher.codec={tmp_path / 'codec'}",
        "--set", f"subset_data.source={tmp_path / 'data.jsonl'}",
        "--set", "prune_layers.keep_layers=2",
        "--set", "register_model.model_name=slimtts-orpheus",
        "--set", "decoding.temperature=0.6",
        "--set", "decoding.top_p=0.95",
        "--set", "decoding.repetition_penalty=1.1",
        "--set", "decoding.max_new_tokens=1232",
        *LARGE,
        "--set", "distill_student.steps=3",
        "--set", "recogniser.model=tiny.en",
    ]  # fmt: skip
    assert "slimtts: " not in capsys.readouterr().err


def test_compress_leaves_the_bundled_teacher_to_the_profile(compressed, capsys):
    assert compressed("--teacher", "bundled", "--name", "mine") == [
        "--name", "mine", "--profile", "demo", "--set", "teacher.family=nano", "--set", "teacher.source=bundled",
    ]  # fmt: skip
    assert capsys.readouterr().err == ""


def test_compress_asks_the_hub_only_for_what_tells_the_family(compressed, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    from slimtts.teachers.detection import FILES

    (tmp_path / "tokenizer_config.json").write_text('{"content": "<|speech_0|>"}')
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *name, **rest: asked.append((*name, rest)) or str(tmp_path)
    )
    revision = "1" * 40
    command = compressed("--teacher", "owner/neutts-air", "--revision", revision, "--keep-layers", "7")
    assert command == [
        "--name", "neutts-air", "--profile", "demo",
        "--set", "teacher.family=neutts",
        "--set", "teacher.source=owner/neutts-air",
        "--set", f'teacher.revision="{revision}"',
        "--set", "prune_layers.keep_layers=7",
        "--set", "register_model.model_name=slimtts-neutts",
        "--set", "decoding.temperature=1.0",
        "--set", "decoding.top_k=50",
        "--set", "decoding.max_new_tokens=751",
        *LARGE,
    ]  # fmt: skip
    assert asked == [("owner/neutts-air", {"revision": revision, "allow_patterns": list(FILES)})]
    assert "--set recogniser.model=" in capsys.readouterr().err


def test_compress_takes_a_cosyvoice_folder_for_its_codec_too(compressed, tmp_path):
    (tmp_path / "llm.pt").write_bytes(b"")
    command = compressed("--teacher", str(tmp_path))
    assert f"teacher.codec={tmp_path}" in command
    assert "teacher.family=cosyvoice2" in command


def test_what_compress_sets_is_read_back_as_it_was(tmp_path):
    from slimtts.commands.compress import _as_yaml
    from tasks.workspace import compose_params

    for text in ("/data/a: b", "yes", "1" * 40, "/data/x #1", "é 😀", "[", '"', "plain"):
        params = compose_params("demo", [f"teacher.source={_as_yaml(text)}"])
        assert params.teacher.source == text


@pytest.mark.parametrize(
    ("arguments", "observed"),
    [
        (["--teacher", "no/folder/here"], "'no/folder/here', which is no folder"),
        (["--teacher", "owner/name"], "at revision ''"),
        (["--teacher", "."], "tokens of no known family"),
        (["--teacher", "bundled", "--data", "nowhere.jsonl"], "nothing at nowhere.jsonl"),
        (["--teacher", "bundled", "--family", "bark"], "observed bark; allowed: nano, llasa"),
    ],
)
def test_what_compress_cannot_open_is_one_line(arguments, observed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compress", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("slimtts: ") and error.count("\n") == 1
    assert observed in error


def test_export_wraps_cosyvoice_only_and_overwrites_nothing(tmp_path, capsys):
    from slimtts.teachers.cosyvoice2_checkpoint import convert_llm_pt, read_llm_pt
    from slimtts.testing.families import write_teacher_folder

    cosyvoice = write_teacher_folder("cosyvoice2", tmp_path / "cosy", 21)
    student, out = convert_llm_pt(cosyvoice), tmp_path / "out"
    given = ["export", "--model", str(student), "--teacher", str(cosyvoice), "--out", str(out)]
    assert main(given) == 0
    assert set(read_llm_pt(out)) == set(read_llm_pt(cosyvoice))
    assert main(given) == 2
    assert "which exists" in capsys.readouterr().err
    other = write_teacher_folder("llasa", tmp_path / "llasa", 21)
    assert main(["export", "--model", str(other), "--teacher", str(cosyvoice), "--out", str(tmp_path / "x")]) == 2
    assert "family llasa, a standard checkpoint already" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_only_nano_is_warned_of_words_that_it_never_heard(tmp_path, monkeypatch, capsys):
    from types import SimpleNamespace

    import numpy

    import slimtts.speech

    def speaker_of(family):
        model = SimpleNamespace(family=SimpleNamespace(name=family))
        return SimpleNamespace(model=model, sample_rate_hz=16_000, speak=lambda *_: numpy.zeros(160, numpy.float32))

    for family in ("nano", "llasa"):
        monkeypatch.setattr(slimtts.speech.Speaker, "load", lambda _, family=family: speaker_of(family))
        assert main(["say", "parliament", "--out", str(tmp_path / f"{family}.wav")]) == 0
        assert ("parliament" in capsys.readouterr().err) is (family == "nano")
        assert (tmp_path / f"{family}.wav").is_file()
