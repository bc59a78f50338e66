"""Builds the bundled teacher's tokenizer: byte-level BPE over the grammar, LLaSA's markers, 4,096 speech tokens."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
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


def build_tokenizer(out: Path, num_codes: int, seed: int) -> PreTrainedTokenizerFast:
    """Writes the tokenizer folder; the ids are text, then 8 markers, then the speech tokens, as in LLaSA."""
    speech = [f"<|s_{code}|>" for code in range(num_codes)]
    core = train_byte_pairs([*TEXT_SPECIALS, INSTRUCTION, *MARKERS, *speech], seed)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|begin_of_text|>",
        eos_token="<|SPEECH_GENERATION_END|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    with atomic_path(out) as tmp:
        tokenizer.save_pretrained(tmp)
    return tokenizer
