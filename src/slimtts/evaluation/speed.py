"""How fast a model speaks: batch 1, after warm-up, in a process of its own so that its peak memory is its own.

LM-RTF = time of the language model / seconds of audio; end-to-end RTF adds the codec.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from slimtts.decoding.generation import generate_batch
from slimtts.params import DecodingParams, TeacherParams
from slimtts.results import SpeedResult
from slimtts.teachers.base import Prompt
from slimtts.teachers.loading import load_beside, load_teacher

WARM_UP_UTTERANCES = 2


def _now_s(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass(frozen=True)
class SpeedJob:
    """What is timed: a checkpoint of the teacher's family, what it says after which prompts, on how many threads."""

    teacher: TeacherParams
    model_folder: Path
    texts: Sequence[str]
    prompts: Sequence[Prompt]
    decoding: DecodingParams
    threads: int


def measure_here(job: SpeedJob) -> SpeedResult:
    """Speaks the texts one at a time; an utterance without audio counts its time and no seconds."""
    torch.set_num_threads(job.threads)
    teacher = load_beside(load_teacher(job.teacher, with_model=False), job.model_folder)
    device = next(teacher.model.parameters()).device
    lm_s, codec_s, audio_s, tokens = [], [], 0.0, 0
    order = [*range(min(WARM_UP_UTTERANCES, len(job.texts))), *range(len(job.texts))]
    for turn, index in enumerate(order):
        ids = teacher.prompt_ids(job.texts[index], job.prompts[index])
        started = _now_s(device)
        spoken = generate_batch(teacher.model, teacher.layout, [ids], job.decoding, row_seeds=[index])[0]
        generated = _now_s(device)
        audio = teacher.audio(spoken.codes)
        finished = _now_s(device)
        if turn < len(order) - len(job.texts):
            continue
        lm_s.append(generated - started)
        codec_s.append(finished - generated)
        audio_s += len(audio) / teacher.codec.sample_rate_hz
        tokens += len(spoken.codes) + spoken.ended
    total_lm_s, spoken_s = sum(lm_s), max(audio_s, 1e-9)
    latencies = np.add(lm_s, codec_s)
    return SpeedResult(
        lm_rtf=total_lm_s / spoken_s,
        end_to_end_rtf=(total_lm_s + sum(codec_s)) / spoken_s,
        tokens_per_s=tokens / total_lm_s,
        latency_p50_s=float(np.percentile(latencies, 50)),
        latency_p95_s=float(np.percentile(latencies, 95)),
        peak_memory_mb=_peak_memory_mb(device),
    )


def measure_speed(job: SpeedJob) -> SpeedResult:
    """`measure_here` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_here, job).result()
