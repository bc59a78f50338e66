"""Measures the bundled teacher on held-out sentences and writes its card: card.json for code, README.md for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from slimtts.codec.nano_codec import NanoCodec
from slimtts.data.token_corpus import TokenCorpus, load_token_corpus
from slimtts.decoding.generation import generate
from slimtts.evaluation.recognition import Recognizer
from slimtts.evaluation.similarity import SpeakerSimilarity
from slimtts.evaluation.statistics import bootstrap_corpus_wer, bootstrap_mean
from slimtts.evaluation.word_errors import corpus_wer, count_word_errors
from slimtts.nano.grammar import TEMPLATES, vocabulary
from slimtts.nano.independent_recognizer import IndependentRecognizer
from slimtts.nano.layout import SEED as RECIPE_SEED
from slimtts.nano.layout import NanoFolders, RecipeSizes
from slimtts.nano.speech_synthesis import SAMPLE_RATE_HZ, VOICES, read_corpus
from slimtts.params import DecodingParams, TeacherParams
from slimtts.results import Interval
from slimtts.speech import bundled_voices
from slimtts.storage import atomic_path
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.loading import load_teacher
from slimtts.teachers.nano import bundle_folder

HELD_OUT = 500
INDEPENDENT = 200
SAMPLES, SEED = 2000, 1
GREEDY = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=112, batch_rows=125, seed=0)


@dataclass(frozen=True)
class HeldOut:
    """Test utterances in three forms: float waveforms at 16 kHz, and how the teacher ended."""

    texts: list[str]
    voices: list[str]
    originals: list[np.ndarray]
    through_codec: list[np.ndarray]
    spoken: list[np.ndarray]
    ended: list[bool]


def held_out_rows(corpus: TokenCorpus, count: int) -> list[int]:
    """The first `count` test utterances, each text once."""
    first: dict[str, int] = {}
    for index, row in enumerate(corpus.rows):
        if row["split"] == "test":
            first.setdefault(row["text"], index)
    return sorted(first.values())[:count]


def speak_held_out(teacher: Teacher, corpus: TokenCorpus, rows: Sequence[int], folders: NanoFolders) -> HeldOut:
    """Originals from the spoken corpus, round trips by the codec, and the teacher's own speech (greedy)."""
    wanted = {corpus.rows[i]["id"] for i in rows}
    audio = {u.id: a.astype(np.float32) / 32768 for u, a in read_corpus(folders.corpus) if u.id in wanted}
    prompts: dict[str, Prompt] = bundled_voices()
    texts = [corpus.rows[i]["text"] for i in rows]
    voices = [corpus.rows[i]["voice"] for i in rows]
    ids = [teacher.prompt_ids(t, prompts[v]) for t, v in zip(texts, voices, strict=True)]
    made = generate(teacher.model, teacher.layout, ids, GREEDY)
    return HeldOut(
        texts,
        voices,
        [audio[corpus.rows[i]["id"]] for i in rows],
        [teacher.audio(corpus.codes_of(i).tolist()).numpy() for i in rows],
        [teacher.audio(m.codes).numpy() for m in made],
        [m.ended for m in made],
    )


def word_error_interval(recognizer: Recognizer, texts: Sequence[str], audio: Sequence[np.ndarray]) -> Interval:
    """Corpus WER with its 95 % interval."""
    heard = recognizer.transcribe(audio, SAMPLE_RATE_HZ)
    errors = [count_word_errors(t, h, "basic") for t, h in zip(texts, heard, strict=True)]
    return bootstrap_corpus_wer(errors, SAMPLES, SEED)


def independent_wer(texts: Sequence[str], audio: Sequence[np.ndarray]) -> float:
    """Corpus WER by pocketsphinx over the first `INDEPENDENT` utterances."""
    recognizer = IndependentRecognizer()
    pairs = list(zip(texts, audio, strict=True))[:INDEPENDENT]
    return corpus_wer([count_word_errors(t, recognizer.transcribe(a), "basic") for t, a in pairs])


def voice_similarity(held_out: HeldOut, prompts: dict[str, np.ndarray]) -> tuple[Interval, Interval]:
    """Cosine of the teacher's speech to its own voice's prompt, and to the mean of the other voices' prompts."""
    similarity = SpeakerSimilarity()
    names = sorted(prompts)
    anchors = similarity.embed([prompts[v] for v in names], SAMPLE_RATE_HZ)
    cosines = similarity.embed(held_out.spoken, SAMPLE_RATE_HZ) @ anchors.T
    own = np.array([[v == name for name in names] for v in held_out.voices])
    same = cosines[own]
    other = cosines[~own].reshape(len(cosines), -1).mean(1)
    return bootstrap_mean(same.tolist(), SAMPLES, SEED), bootstrap_mean(other.tolist(), SAMPLES, SEED)


def measure(folders: NanoFolders) -> dict[str, object]:
    """Every number of the card."""
    bundle = bundle_folder()
    teacher = load_teacher(TeacherParams(family="nano", source="bundled"))
    corpus = load_token_corpus(bundle / "corpus")
    held_out = speak_held_out(teacher, corpus, held_out_rows(corpus, HELD_OUT), folders)
    recognizer = Recognizer.load(str(bundle / "asr"), beam_size=1)
    prompts = {v: teacher.audio(p.codes).numpy() for v, p in bundled_voices().items()}
    same, other = voice_similarity(held_out, prompts)
    by_voice = {
        voice: word_error_interval(
            recognizer,
            [t for t, v in zip(held_out.texts, held_out.voices, strict=True) if v == voice],
            [a for a, v in zip(held_out.spoken, held_out.voices, strict=True) if v == voice],
        ).model_dump()
        for voice in VOICES
    }
    return {
        "held_out_sentences": len(held_out.texts),
        "wer_originals": word_error_interval(recognizer, held_out.texts, held_out.originals).model_dump(),
        "wer_after_codec": word_error_interval(recognizer, held_out.texts, held_out.through_codec).model_dump(),
        "wer_teacher": word_error_interval(recognizer, held_out.texts, held_out.spoken).model_dump(),
        "wer_teacher_by_voice": by_voice,
        "no_end_rate": 1 - sum(held_out.ended) / len(held_out.ended),
        "same_voice_similarity": same.model_dump(),
        "other_voice_similarity": other.model_dump(),
        "pocketsphinx": {
            "sentences": min(INDEPENDENT, len(held_out.texts)),
            "wer_originals": independent_wer(held_out.texts, held_out.originals),
            "wer_after_codec": independent_wer(held_out.texts, held_out.through_codec),
            "wer_teacher": independent_wer(held_out.texts, held_out.spoken),
        },
        "parameters": teacher.model.num_parameters(),
        "codec_parameters": sum(p.numel() for p in torch.nn.Module.parameters(teacher.codec)),  # type: ignore[arg-type]
    }


def training_hours() -> float:
    """Hours of the train split, from its codes."""
    corpus = load_token_corpus(bundle_folder() / "corpus")
    frame_rate_hz = NanoCodec.load(bundle_folder() / "codec").frame_rate_hz
    frames = np.diff(corpus.offsets)[[row["split"] == "train" for row in corpus.rows]]
    return float(frames.sum()) / frame_rate_hz / 3600


def _percent(interval: dict[str, float]) -> str:
    return f"{100 * interval['value']:.1f} % [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def card_text(card: dict) -> str:  # type: ignore[type-arg]
    """The card for people, Markdown."""
    m, p, r = card["measured"], card["measured"]["pocketsphinx"], card["recipe"]
    rows = "".join(f"| teacher, voice {v} | {_percent(i)} |\n" for v, i in m["wer_teacher_by_voice"].items())
    same, other = m["same_voice_similarity"]["value"], m["other_voice_similarity"]["value"]
    return f"""# The bundled teacher "nano"

A 12-layer Llama of {m["parameters"] / 1e6:.1f} M parameters in LLaSA's token layout, its FSQ codec (4,096 codes, 25 a
second, 16 kHz, {m["codec_parameters"] / 1e6:.1f} M parameters) and its Whisper-shaped recogniser. It speaks a language
of {len(vocabulary())} words in {len(TEMPLATES)} templates, in the voices {", ".join(VOICES)}. It exists so that the
pipeline runs on real speech with no network and no GPU; it is not a product voice.

## Numbers
On {m["held_out_sentences"]} held-out sentences that no training and no choice saw, greedy decoding, with bootstrap
95 % intervals:

| what | WER |
|---|---|
| recogniser on the originals | {_percent(m["wer_originals"])} |
| recogniser after the codec | {_percent(m["wer_after_codec"])} |
| teacher | {_percent(m["wer_teacher"])} |
{rows}
Utterances that never end: {100 * m["no_end_rate"]:.1f} %. Voice similarity (resemblyzer) to the prompt {same:.2f}, to
the other voices {other:.2f}. Second opinion by pocketsphinx with a bigram grammar, {p["sentences"]} sentences:
originals {100 * p["wer_originals"]:.1f} %, after the codec {100 * p["wer_after_codec"]:.1f} %, teacher
{100 * p["wer_teacher"]:.1f} %.

## Data
{card["training_hours"]:.1f} hours of speech synthesised by flite from the grammar; a text belongs to train,
selection or test by its hash. `corpus/` holds all of it as codes, `originals/` a few test recordings.

## Recipe
`python -m flows.pretrain_nano` (needs flite): {r["utterances"]} utterances, codec {r["codec_steps"]} steps, recogniser
{r["asr_steps"]} steps, language model {r["lm_steps"]} steps, seed {card["seed"]}. {card["note"]}

## Licence
Weights and codes: Apache-2.0, as this project. The speech was made with flite and its voices (CMU, BSD-like licence:
free use with attribution); no recording of theirs is included.
"""


def write_card(folders: NanoFolders, note: str = "") -> None:
    """Writes card.json (hours first, so that the teacher can be opened) and README.md into the bundle."""
    bundle = bundle_folder()
    card: dict[str, object] = {
        "training_hours": training_hours(),
        "seed": RECIPE_SEED,
        "recipe": asdict(RecipeSizes()),
        "note": note,
    }
    with atomic_path(bundle / "card.json") as tmp:
        tmp.write_text(json.dumps(card, indent=1))
    card["measured"] = measure(folders)
    with atomic_path(bundle / "card.json") as tmp:
        tmp.write_text(json.dumps(card, indent=1) + "\n")
    with atomic_path(bundle / "README.md") as tmp:
        tmp.write_text(card_text(card))
