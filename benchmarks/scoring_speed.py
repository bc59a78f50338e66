"""Scoring layers as the stage does it, against the plain way: one sentence and one model at a time.

python -m benchmarks.scoring_speed                                  # nano: about four minutes of one core
python -m benchmarks.scoring_speed --quick
python -m benchmarks.scoring_speed --model llasa-1b --device cuda --max-new-tokens 128

By words (WLI): the plain way removes each layer in turn and calls `transformers.generate` (greedy, the same ids
allowed) and the recogniser for each sentence; ours is the stage's own function on a group of sentences. Generation and
recognition are also timed alone, recognition of the same audio. In sets: the plain way computes each set the search
visits whole, sentence by sentence, with both distributions; ours is the stage's own search. Both sides take turns in
one process; ratios are of seconds a sentence, by the clock, and on a CPU also by the processor's time, which other
processes disturb less. LLaSA-1B has random weights, speaks until the limit and is not heard.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from benchmarks.true_sizes import SIZES, made_in
from slimtts.data.batching import token_budget_batches
from slimtts.data.manifest import Utterance
from slimtts.data.token_corpus import load_token_corpus
from slimtts.decoding.generation import generate
from slimtts.decoding.teacher_forcing import ForcedBatch, ForcedSequence, collate
from slimtts.distill.training import pick_device
from slimtts.evaluation.recognition import Recognizer
from slimtts.nano.card import held_out_rows
from slimtts.params import DecodingParams, TeacherParams
from slimtts.scoring.set_search import search_sets
from slimtts.scoring.shared_prefix import target_log_probabilities, with_layers
from slimtts.scoring.wli import speak_without_each_layer
from slimtts.speech import bundled_voices
from slimtts.stages.evaluate_student import describe_machine
from slimtts.stages.score_layers import TOKENS_PER_BATCH
from slimtts.teachers.base import SpeechTokenLayout, Teacher
from slimtts.teachers.loading import load_teacher
from slimtts.teachers.nano import bundle_folder

PROMPT_TOKENS, SPOKEN_CODES = 60, 40  # of a sentence for a model with random weights: about nano's
BEAM_WIDTH = 4


@dataclass(frozen=True)
class Subject:
    """A model and some sentences; `teacher` only where it can be heard."""

    model: Any
    layout: SpeechTokenLayout
    prompts: list[list[int]]
    sequences: list[ForcedSequence]
    teacher: Teacher | None
    utterances: list[Utterance]

    @property
    def depth(self) -> int:
        return len(self.model.model.layers)


def nano(count: int, device: torch.device) -> Subject:
    """The bundled teacher and test sentences of its corpus."""
    teacher = load_teacher(TeacherParams(family="nano", source="bundled"))
    teacher.model.to(device)
    corpus, voices = load_token_corpus(bundle_folder() / "corpus"), bundled_voices()
    utterances = []
    for index in held_out_rows(corpus, count):
        row = corpus.rows[index]
        codes = tuple(corpus.codes_of(index).tolist())
        utterances.append(Utterance(row["id"], row["text"], row["voice"], codes, len(codes) / 25))
    prompts = [teacher.prompt_ids(u.text, voices[u.voice]) for u in utterances]
    sequences = [_forced(teacher.layout, p, u.codes) for p, u in zip(prompts, utterances, strict=True)]
    return Subject(teacher.model, teacher.layout, prompts, sequences, teacher, utterances)


def random_weights(name: str, count: int, device: torch.device) -> Subject:
    """A published shape whose head has a row for every id, in bf16 on CUDA."""
    size, dtype = SIZES[name](), torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with made_in(dtype), device:
        model = AutoModelForCausalLM.from_config(size.config, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, size.layout.first_code_id, (count, PROMPT_TOKENS), generator=generator).tolist()
    codes = torch.randint(0, size.layout.num_codes, (count, SPOKEN_CODES), generator=generator).tolist()
    sequences = [_forced(size.layout, p, c) for p, c in zip(prompts, codes, strict=True)]
    return Subject(model, size.layout, prompts, sequences, None, [])


def _forced(layout: SpeechTokenLayout, prompt: list[int], codes: Any) -> ForcedSequence:
    return ForcedSequence((*prompt, *layout.to_ids(codes)), len(prompt) - 1, (*codes, layout.num_codes))


class OnlySpoken(LogitsProcessor):
    """The ids that can be spoken."""

    def __init__(self, layout: SpeechTokenLayout, ids: int, device: torch.device) -> None:
        first = layout.first_code_id
        self.forbidden = torch.ones(ids, dtype=torch.bool, device=device)
        self.forbidden[first : first + layout.num_codes] = False
        self.forbidden[layout.end_id] = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(self.forbidden, -torch.inf)


@contextmanager
def without_layer(model: Any, left_out: int | None):
    """The model as if it never had the layer: fewer layers, numbered again for the cache."""
    retained = [i for i in range(len(model.model.layers)) if i != left_out]
    attentions = [layer.self_attn for layer in model.model.layers]
    with with_layers(model, retained):
        for place, layer in enumerate(model.model.layers):
            layer.self_attn.layer_idx = place
        try:
            yield
        finally:
            for place, attention in enumerate(attentions):
                attention.layer_idx = place


def generate_plainly(subject: Subject, rows: range, max_new_tokens: int) -> list[tuple[int, ...]]:
    """Codes sentence by sentence, of each the full model's and those without each layer."""
    layout, device = subject.layout, next(subject.model.parameters()).device
    allowed = LogitsProcessorList([OnlySpoken(layout, subject.model.config.vocab_size, device)])
    codes = []
    for row in rows:
        ids = torch.tensor([subject.prompts[row]], device=device)
        for left_out in (None, *range(subject.depth)):
            with without_layer(subject.model, left_out):
                out = subject.model.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, logits_processor=allowed,
                    max_new_tokens=max_new_tokens, eos_token_id=layout.end_id, pad_token_id=layout.pad_id,
                )  # fmt: skip
            codes.append(tuple(layout.to_codes(out[0, ids.shape[1] :].tolist())))
    return codes


def generate_together(subject: Subject, decoding: DecodingParams) -> list[tuple[int, ...]]:
    """The same, as the stage generates."""
    ablations = subject.depth + 1
    skip = torch.cat([torch.zeros(1, subject.depth, dtype=torch.bool), torch.eye(subject.depth, dtype=torch.bool)])
    ids = [prompt for prompt in subject.prompts for _ in range(ablations)]
    made = generate(subject.model, subject.layout, ids, decoding, skip.repeat(len(subject.prompts), 1))
    return [one.codes for one in made]


@torch.inference_mode()
def divergence_plainly(subject: Subject, rows: range, sets: list[tuple[int, ...]]) -> list[float]:
    """KL of every set, summed over sentences: each set and sentence whole, both distributions whole."""
    sums = [0.0] * len(sets)
    for row in rows:
        batch = _batch(subject, [row])
        expected = target_log_probabilities(subject.model, subject.layout, batch)
        for place, retained in enumerate(sets):
            with with_layers(subject.model, retained):
                got = target_log_probabilities(subject.model, subject.layout, batch)
            sums[place] += float(F.kl_div(got, expected, log_target=True, reduction="sum"))
    return sums


def _batch(subject: Subject, rows: list[int]) -> ForcedBatch:
    device = next(subject.model.parameters()).device
    return collate([subject.sequences[row] for row in rows], subject.layout.pad_id).to(device)


@dataclass
class Spent:
    """Seconds of one side, by the clock and of the processor, for so many sentences."""

    seconds: float = 0.0
    computed: float = 0.0
    sentences: int = 0

    def __add__(self, other: Spent) -> Spent:
        """One after the other, for the same sentences."""
        return Spent(self.seconds + other.seconds, self.computed + other.computed, self.sentences)

    def run(self, sentences: int, work: Callable[[], Any]) -> Any:
        """Adds what `work` takes."""
        _wait()
        started, computed = time.perf_counter(), time.process_time()
        made = work()
        _wait()
        self.seconds += time.perf_counter() - started
        self.computed += time.process_time() - computed
        self.sentences += sentences
        return made


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass
class Part:
    """Both sides of one comparison, on how many sentences, and what they agree in."""

    name: str
    plain: Spent
    ours: Spent
    agreement: str
    extrapolated: bool

    def figures(self) -> dict[str, Any]:
        plain, ours = ((s.seconds / s.sentences, s.computed / s.sentences) for s in (self.plain, self.ours))
        return {
            "part": self.name,
            "plain_s": plain[0],
            "ours_s": ours[0],
            "ratio": plain[0] / ours[0],
            "processor_ratio": plain[1] / ours[1],
            "extrapolated": self.extrapolated,
            "agreement": self.agreement,
        }


def split(count: int, rounds: int) -> list[range]:
    """`count` sentences in as many nearly equal parts."""
    return [range(a, b) for a, b in pairwise(count * i // rounds for i in range(rounds + 1))]


def same_of(one: Sequence[Any], other: Sequence[Any], what: str) -> str:
    """How many of `one` are as in `other`, which may be longer."""
    return f"{sum(a == b for a, b in zip(one, other, strict=False))}/{len(one)} {what} the same"


class Hearing:
    """The bundled recogniser, as the stage has it and as faster-whisper has it by itself: all threads on a sentence."""

    def __init__(self, teacher: Teacher) -> None:
        from faster_whisper import WhisperModel  # only nano is heard

        folder = str(bundle_folder() / "asr")
        self.teacher, self.rate_hz = teacher, teacher.codec.sample_rate_hz
        self.ours = Recognizer.load(folder, beam_size=1)
        alone = WhisperModel(
            folder, device="cpu", compute_type="float32", cpu_threads=torch.get_num_threads(), local_files_only=True
        )
        self.plain = replace(self.ours, threads=1, _whisper=alone)

    def together(self, waves: Sequence[torch.Tensor]) -> list[str]:
        return self.ours.transcribe([wave.numpy() for wave in waves], self.rate_hz)

    def one_by_one(self, waves: Sequence[torch.Tensor]) -> list[str]:
        return [self.plain.transcribe([wave.numpy()], self.rate_hz)[0] for wave in waves]


def compare_words(subject: Subject, decoding: DecodingParams, plain_count: int, rounds: int) -> list[Part]:
    """Generation; and where there is a codec and a recogniser, these and the whole of WLI."""
    teacher, count = subject.teacher, len(subject.prompts)
    hearing = Hearing(teacher) if teacher else None
    voices = bundled_voices()
    prompts = [voices[u.voice] for u in subject.utterances]
    plain, ours = ({name: Spent() for name in ("generation", "audio", "recognition", "whole")} for _ in range(2))
    codes, texts, trials, heard = [], [], [], []
    for rows in split(plain_count, rounds):
        size = len(rows)
        said = plain["generation"].run(size, lambda rows=rows: generate_plainly(subject, rows, decoding.max_new_tokens))
        codes += said
        together = ours["generation"].run(count, lambda: generate_together(subject, decoding))
        if teacher is None or hearing is None:
            continue
        waves = plain["audio"].run(size, lambda said=said: [teacher.audio(one) for one in said])
        texts += plain["recognition"].run(size, lambda waves=waves: hearing.one_by_one(waves))
        heard += ours["recognition"].run(size, lambda waves=waves: hearing.together(waves))
        trials = ours["whole"].run(
            count,
            lambda: speak_without_each_layer(teacher, subject.utterances, prompts, decoding, hearing.together),
        )
    partial = plain_count < count
    generation = same_of(codes, together, "rows of codes")
    parts = [Part("generation", plain["generation"], ours["generation"], generation, partial)]
    if teacher:
        recognition = same_of(texts, heard, "transcripts")
        parts.append(Part("recognition", plain["recognition"], ours["recognition"], recognition, False))
        whole = plain["generation"] + plain["audio"] + plain["recognition"]
        transcripts = same_of(texts, [trial.transcript for trial in trials], "transcripts")
        parts.append(Part("WLI as a whole", whole, ours["whole"], transcripts, partial))
    return parts


def compare_search(subject: Subject, plain_count: int, rounds: int, beam_width: int) -> Part:
    """The beam search over sets."""
    device, count = next(subject.model.parameters()).device, len(subject.sequences)
    groups = token_budget_batches([len(s.ids) for s in subject.sequences], TOKENS_PER_BATCH[device.type])
    batches, plain, ours = [_batch(subject, group) for group in groups], Spent(), Spent()
    sums: list[float] = []
    for rows in split(plain_count, rounds):
        levels = ours.run(count, lambda: search_sets(subject.model, subject.layout, batches, beam_width))
        visited = [one for level in levels for one in level]
        sets = [one.retained for one in visited]
        found = plain.run(len(rows), lambda rows=rows, sets=sets: divergence_plainly(subject, rows, sets))
        sums = [a + b for a, b in zip(sums or [0.0] * len(sets), found, strict=True)]
    agreement = f"{len(sets)} sets"
    if plain_count == count:
        positions = sum(int(batch.is_target.sum()) for batch in batches)
        furthest = max(abs(a / positions - b.divergence) for a, b in zip(sums, visited, strict=True))
        agreement += f", largest difference {furthest:.1e} nats a code"
    return Part("search over sets", plain, ours, agreement, plain_count < count)


def table(parts: list[Part]) -> str:
    """Markdown."""
    lines = [
        "| part | plain, s a sentence | ours | ratio | by processor time | agreement |",
        "|---|---|---|---|---|---|",
    ]
    for part in parts:
        row, mark = part.figures(), " *" if part.extrapolated else ""
        lines.append(
            f"| {row['part']} | {row['plain_s']:.3f}{mark} | {row['ours_s']:.3f} | {row['ratio']:.1f}x "
            f"| {row['processor_ratio']:.1f}x | {row['agreement']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("nano", "llasa-1b"), default="nano")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--utterances", type=int, default=8, help="sentences of ours; the stage speaks 8 together")
    parser.add_argument(
        "--plain-utterances", type=int, help="of these, for the plain way; default: all of nano on a CPU, else 1"
    )
    parser.add_argument("--search-utterances", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=112)
    parser.add_argument("--beam-width", type=int, default=BEAM_WIDTH)
    parser.add_argument("--rounds", type=int, default=2, help="turns that both sides take")
    parser.add_argument("--threads", type=int, help="of the processor; default: all")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one sentence, 16 codes, width 1")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    count, searched, rounds, width = (
        (1, 1, 1, 1)
        if options.quick
        else (options.utterances, options.search_utterances, options.rounds, options.beam_width)
    )
    max_new_tokens = 16 if options.quick else options.max_new_tokens
    device = pick_device(options.device)
    small = options.model == "nano" and device.type == "cpu"
    plain_count = min(count, options.plain_utterances or (count if small else 1))
    rounds = min(rounds, plain_count)
    make = nano if options.model == "nano" else lambda n, where: random_weights(options.model, n, where)
    subject = make(max(count, searched), device)
    spoken = replace(subject, prompts=subject.prompts[:count], utterances=subject.utterances[:count])
    decoding = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=max_new_tokens, batch_rows=128, seed=1)
    generate(subject.model, subject.layout, subject.prompts[:1], decoding)  # warm-up
    title = f"{options.model}, {device}, {date.today()}, {describe_machine(torch.get_num_threads())}"
    print(f"{title}: {count} sentences x {subject.depth + 1} models", flush=True)
    parts = compare_words(spoken, decoding, plain_count, rounds)
    forced = replace(subject, sequences=subject.sequences[:searched])
    plain_searched = searched if small else 1
    parts.append(compare_search(forced, plain_searched, min(rounds, plain_searched), width))
    print(table(parts))
    if any(part.extrapolated for part in parts):
        print(f"* the plain way on {plain_count} of {count} sentences ({plain_searched} of {searched} in the search)")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        values = {"title": title, "parts": [part.figures() for part in parts]}
        options.out.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
