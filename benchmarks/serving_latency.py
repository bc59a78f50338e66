"""Time to first audio and RTF: `slimtts serve` on loopback, streamed, against the whole utterance at once.

python benchmarks/serving_latency.py --sentences 12

Alternates a streamed call with `Speaker.speak` of the same sentence in this process; prints medians and 95th centiles.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import httpx
import numpy as np
import torch

from slimtts.nano.grammar import sample_sentence
from slimtts.serving.waveform_bytes import BYTES_A_SAMPLE
from slimtts.speech import Speaker
from slimtts.stages.evaluate_student import describe_machine


@contextmanager
def server(threads):
    """Address of a server of the bundled teacher."""
    command = [sys.executable, "-m", "slimtts.cli", "serve", "--port", "0", "--threads", str(threads)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as out:
            process = subprocess.Popen([*command, "--requests-per-minute", "100000"], stdout=out, stderr=out)
        try:
            while not (running := re.search(r"running on (http://\S+)", log.read_text())):
                if process.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.1)
            yield running[1]
        finally:
            process.terminate()
            process.wait()


def streamed(http, text, voice):
    """Seconds until the first audio, seconds until the last, samples."""
    asked = {"model": "bundled", "input": text, "voice": voice, "response_format": "pcm"}
    started, first_s, count = time.perf_counter(), None, 0
    with http.stream("POST", "/v1/audio/speech", json=asked) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_raw():
            first_s = first_s or time.perf_counter() - started
            count += len(chunk)
    return first_s, time.perf_counter() - started, count // BYTES_A_SAMPLE


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one sentence, in every voice")
    options = parser.parse_args()
    if options.quick:
        options.sentences = 1
    torch.set_num_threads(options.threads)
    speaker, rng = Speaker.load(), random.Random(1)
    tasks = [(sample_sentence(rng), voice) for _ in range(options.sentences) for voice in sorted(speaker.voices)]
    speaker.speak(*tasks[0])
    rows = []
    with server(options.threads) as address, httpx.Client(base_url=address, timeout=60) as http:
        for text, voice in tasks:
            first_s, all_s, count = streamed(http, text, voice)
            started = time.perf_counter()
            whole = speaker.speak(text, voice)
            whole_s = time.perf_counter() - started
            if len(whole) != count:
                raise SystemExit(f"{voice}, {text}: {count} samples streamed, {len(whole)} whole")
            audio_s = count / speaker.sample_rate_hz
            rows.append((first_s, whole_s, all_s / audio_s, whole_s / audio_s, audio_s))
    first, waited, rtf, whole_rtf, audio = np.array(rows).T
    print(f"{date.today()}, {describe_machine(options.threads)}, load {os.getloadavg()[0]:.1f}:", end=" ")
    print(f"{len(rows)} utterances, {audio.sum():.0f} s of audio")
    print("| | first audio, s: median / 95 % | RTF: median / 95 % |\n|---|---|---|")
    for name, seconds, share in (("streamed over HTTP", first, rtf), ("whole", waited, whole_rtf)):
        cells = [f"{np.median(x):.3f} / {np.percentile(x, 95):.3f}" for x in (seconds, share)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
