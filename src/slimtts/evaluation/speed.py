"""How fast a model speaks: batch 1, after warm-up, in a process of its own so that its peak memory is its own.

LM-RTF = time of the language model / seconds of audio; end-to-end RTF adds the codec. Eager LM-RTF is that of the
model's own forward, without the fast decoder. The first audio is heard when enough codes are there for a first piece.
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
from slimtts.decoding.lean_pool import lean_pool
from slimtts.decoding.plain import plain_steps
from slimtts.decoding.streaming import WindowedCodec, stream_audio, stream_codes
from slimtts.params import DecodingParams, TeacherParams
from slimtts.quantization.placement import place_for_speech
from slimtts.results import SpeedResult
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.loading import load_beside, load_teacher

STATUS = Path("/proc/self/status")  # Linux only
WARM_UP_UTTERANCES = 2


def _now_s(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if STATUS.is_file():  # of this process alone: ru_maxrss starts with that of the process that started it
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
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


@dataclass(frozen=True)
class Timed:
    """One utterance, nothing of whose prompt was computed before: seconds, and what came of it."""

    lm_s: float
    codec_s: float
    first_audio_s: float
    eager_lm_s: float
    audio_s: float
    tokens: int


def _spoken(teacher: Teacher, ids: list[int], decoding: DecodingParams, seed: int, device: torch.device) -> Timed:
    pool = lean_pool(teacher.model, teacher.layout)

    def now_of_a_first_call() -> float:
        if pool is not None:
            pool.forget_prompts()
        return _now_s(device)

    started = now_of_a_first_call()
    spoken = generate_batch(teacher.model, teacher.layout, [ids], decoding, row_seeds=[seed])[0]
    generated = _now_s(device)
    audio = teacher.audio(spoken.codes)
    finished = _now_s(device)
    first_audio_s = finished - started
    if isinstance(teacher.codec, WindowedCodec):
        streamed = now_of_a_first_call()
        codes = stream_codes(teacher.model, teacher.layout, ids, decoding, seed)
        next(stream_audio(codes, teacher.codec), None)
        first_audio_s = _now_s(device) - streamed
    eager = _now_s(device)
    for _ in plain_steps(teacher.model, teacher.layout, [ids], decoding, row_seeds=[seed]):
        pass
    return Timed(
        lm_s=generated - started,
        codec_s=finished - generated,
        first_audio_s=first_audio_s,
        eager_lm_s=_now_s(device) - eager,
        audio_s=len(audio) / teacher.codec.sample_rate_hz,
        tokens=len(spoken.codes) + spoken.ended,
    )


def measure_here(job: SpeedJob) -> SpeedResult:
    """Speaks the texts one at a time; an utterance without audio counts its time and no seconds."""
    torch.set_num_threads(job.threads)
    teacher = load_beside(load_teacher(job.teacher, with_model=False), job.model_folder)
    place_for_speech(teacher.model)
    device = next(teacher.model.parameters()).device
    order = [*range(min(WARM_UP_UTTERANCES, len(job.texts))), *range(len(job.texts))]
    prompts = [teacher.prompt_ids(text, prompt) for text, prompt in zip(job.texts, job.prompts, strict=True)]
    timed = [_spoken(teacher, prompts[index], job.decoding, index, device) for index in order][-len(job.texts) :]
    lm_s, spoken_s = sum(one.lm_s for one in timed), max(sum(one.audio_s for one in timed), 1e-9)
    latencies = [one.lm_s + one.codec_s for one in timed]
    return SpeedResult(
        lm_rtf=lm_s / spoken_s,
        end_to_end_rtf=sum(latencies) / spoken_s,
        tokens_per_s=sum(one.tokens for one in timed) / lm_s,
        latency_p50_s=float(np.percentile(latencies, 50)),
        latency_p95_s=float(np.percentile(latencies, 95)),
        peak_memory_mb=_peak_memory_mb(device),
        first_audio_p50_s=float(np.percentile([one.first_audio_s for one in timed], 50)),
        first_audio_p95_s=float(np.percentile([one.first_audio_s for one in timed], 95)),
        eager_lm_rtf=sum(one.eager_lm_s for one in timed) / spoken_s,
    )


def measure_speed(job: SpeedJob) -> SpeedResult:
    """`measure_here` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure_here, job).result()
