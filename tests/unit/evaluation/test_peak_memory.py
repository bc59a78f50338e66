"""The memory of a measured system is its own, however large the process is that asked for it."""

import subprocess
import sys

import numpy as np
import torch

from slimtts.evaluation.speed import _peak_memory_mb

CODE = "import torch; from slimtts.evaluation.speed import _peak_memory_mb; print(_peak_memory_mb(torch.device('cpu')))"


def test_a_process_does_not_inherit_the_peak_of_the_one_that_started_it():
    held = np.ones(1 << 27)  # 1 GiB
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=True)
    own = _peak_memory_mb(torch.device("cpu"))
    assert 50 < float(done.stdout) < own - 100 and own > held.nbytes / 2**20


def test_the_peak_is_told_on_systems_without_proc_too(monkeypatch, tmp_path):
    monkeypatch.setattr("slimtts.evaluation.speed.STATUS", tmp_path / "nothing")
    assert _peak_memory_mb(torch.device("cpu")) > 50
