"""Builds a bundled teacher's tokenizer: its text, LLaSA's markers, 4,096 speech tokens.

Text is words, by byte-level BPE over the grammar, or phones written as text ("ðə fˈɑks."): a token is a phone with the
stress mark and the space before it, so that every frame of speech has one.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from slimtts.nano.grammar import sample_sentence, vocabulary
from slimtts.storage import atomic_path
from slimtts.teachers.llasa import INSTRUCTION

TEXT_SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|pad|>")
MARKERS = tuple(
    f"<|{kind}_{side}|>"
    for kind in ("TEXT_GENERATION", "TEXT_UNDERSTANDING", "SPEECH_GENERATION", "SPEECH_UNDERSTANDING")
    for side in ("START", "END")
)
UNKNOWN = "[UNK]"
# Kokoro's phones of American English, each one character.
PHONES = "AIOWYbdfhijklmnpstuvwzæðŋɐɑɔəɛɜɡɪɹʃʒʊʌʤʧθᵊᵻT"
STRESSES = "ˈˌ"
PAUSES = ".,?!"
CHAT_TEMPLATE = "<|begin_of_text|>{% for message in messages %}{{ message['content'] }}{% endfor %}"


def train_byte_pairs(extra: list[str], seed: int) -> Tokenizer:
    """Byte-level BPE with enough merges to make every word of the language one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(seed)
    texts = [sample_sentence(rng) + "." for _ in range(4000)]
    trainer = trainers.BpeTrainer(
        vocab_size=4096, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator(texts + vocabulary(), trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=token != INSTRUCTION) for token in extra])
    return tokenizer


def phone_tokens(extra: list[str]) -> Tokenizer:
    """One token a phone; a text begins as a word does, after a space."""
    marked = [space + stress + phone for space in ("", " ") for stress in ("", *STRESSES) for phone in PHONES]
    texts = [UNKNOWN, *marked, *(space + pause for space in ("", " ") for pause in PAUSES)]
    tokenizer = Tokenizer(models.WordLevel({text: number for number, text in enumerate(texts)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f" ?[{STRESSES}]?."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=token != INSTRUCTION) for token in extra])
    return tokenizer


def build_tokenizer(
    out: Path, num_codes: int, seed: int, text_unit: Literal["words", "phones"] = "words"
) -> PreTrainedTokenizerFast:
    """Writes the tokenizer folder; the ids are text, then 8 markers, then the speech tokens, as in LLaSA."""
    extra = [*TEXT_SPECIALS, INSTRUCTION, *MARKERS, *(f"<|s_{code}|>" for code in range(num_codes))]
    core = phone_tokens(extra) if text_unit == "phones" else train_byte_pairs(extra, seed)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|begin_of_text|>",
        eos_token="<|SPEECH_GENERATION_END|>",
        pad_token="<|pad|>",
        unk_token=UNKNOWN if text_unit == "phones" else None,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    with atomic_path(out) as tmp:
        tokenizer.save_pretrained(tmp)
    return tokenizer
