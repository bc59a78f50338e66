"""CosyVoice 2: `[sos] text [task_id] speech` over Qwen2.5-0.5B, 6,561 codes at 25 a second.

Source: arXiv 2412.10117 and the family's published code (cosyvoice/llm/llm.py, class Qwen2LM). The prompt's text and
the text are read apart and put one after the other; its codes open the speech. Text is taken as it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from slimtts.codec.base import SpeechCodec
from slimtts.codec.cosyvoice_codec import CosyVoiceCodec
from slimtts.errors import InvalidInputError
from slimtts.teachers.base import Family, Prompt, SpeechTokenLayout, check_text
from slimtts.teachers.checkpoint import load_language_model
from slimtts.teachers.cosyvoice2_checkpoint import LLM, SIZES, SPECIAL_TOKENS, convert_llm_pt
from slimtts.teachers.cosyvoice2_model import PROMPT_ROWS, ROWS_AFTER_CODES

TEXT_CHUNK, SPEECH_CHUNK = 5, 15  # cosyvoice2.yaml, mix_ratio


class CosyVoice2Family(Family):
    """CosyVoice 2 0.5B and its students."""

    name = "cosyvoice2"
    license = "Apache-2.0"
    # cosyvoice2.yaml. 15 seconds at 25 codes a second, and END.
    decoding: ClassVar[Mapping[str, float]] = {
        "temperature": 1.0, "top_p": 0.8, "top_k": 25, "repetition_aware": True, "max_new_tokens": 376,
    }  # fmt: skip
    text_markup = frozenset(token for token in SPECIAL_TOKENS if not token.startswith("<|"))

    @property
    def training_hours(self) -> float:
        """Chinese 130,000, English 30,000, Japanese 4,600, Korean 2,200: arXiv 2412.10117, data of the model."""
        return 166_800.0

    def load_codec(self, source: str) -> SpeechCodec:
        """The S3 tokenizer, and with a CosyVoice folder as `source` the way back to audio; both opened at first use."""
        return CosyVoiceCodec(Path(source) if source else None)

    def load_model(self, folder: Path) -> Any:
        """From a CosyVoice folder, or from a converted one or a student's."""
        return load_language_model(convert_llm_pt(folder) if (folder / LLM).is_file() else folder)

    def layout(self, tokenizer: PreTrainedTokenizerBase, codec: SpeechCodec) -> SpeechTokenLayout:
        """Where speech lives in the vocabulary, as the conversion wrote it beside the tokenizer.

        Raises:
            InvalidInputError: not a converted checkpoint's tokenizer, or the codec of another model.
        """
        sizes = tokenizer.init_kwargs.get(SIZES)
        what = f"tokenizer {tokenizer.name_or_path}"
        if not isinstance(sizes, dict):
            raise InvalidInputError(
                what, f"no entry '{SIZES}'", "the tokenizer of a converted checkpoint", "name the CosyVoice folder"
            )
        if sizes["num_codes"] != codec.num_codes:
            raise InvalidInputError(
                what, f"{sizes['num_codes']} codes", codec.num_codes, "use the codec that belongs to this teacher"
            )
        first = sizes["text_rows"] + PROMPT_ROWS
        end = first + codec.num_codes
        return SpeechTokenLayout(
            first, codec.num_codes, end, tokenizer.pad_token_id, first, labels_after_end=ROWS_AFTER_CODES - 1
        )

    def prompt_ids(
        self, tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, text: str, prompt: Prompt
    ) -> list[int]:
        """`[sos] prompt text, text [task_id] prompt codes`.

        Raises:
            InvalidInputError: `text` is empty.
        """
        check_text(text)
        return _unistream(layout, _text_ids(tokenizer, prompt, text), prompt.codes)

    def textless_prompt_ids(
        self, tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, prompt: Prompt
    ) -> list[int]:
        """`[sos] [task_id] prompt codes`."""
        return _unistream(layout, [], prompt.codes)

    def bistream_labels(
        self,
        tokenizer: PreTrainedTokenizerBase,
        layout: SpeechTokenLayout,
        text: str,
        prompt: Prompt,
        codes: Sequence[int],
    ) -> list[tuple[int, int | None]] | None:
        """The layout for a text that arrives piece by piece: 5 text tokens, 15 codes, and so on.

        Pairs of an id and what follows it: a code, END or fill (the last of the labels), None where nothing is to be
        learned. After every full chunk of codes comes fill, which asks for text and is itself never read. What is
        left of the text, task_id and the rest of the codes close the sequence. None for at most 3 codes a text token:
        such an utterance has no such layout.
        """
        words, spoken = _text_ids(tokenizer, prompt, text), [*prompt.codes, *codes]
        if not words or len(spoken) * TEXT_CHUNK <= len(words) * SPEECH_CHUNK:
            return None
        end, fill = layout.num_codes, layout.num_codes + layout.labels_after_end
        pairs: list[tuple[int, int | None]] = [(layout.first_code_id - 2, None)]
        full = len(words) // TEXT_CHUNK
        for chunk in range(full):
            pairs += _chunk(
                layout,
                words[chunk * TEXT_CHUNK : (chunk + 1) * TEXT_CHUNK],
                [*spoken[chunk * SPEECH_CHUNK : (chunk + 1) * SPEECH_CHUNK], fill],
            )
        rest = [*words[full * TEXT_CHUNK :], layout.first_code_id - 1]
        return pairs + _chunk(layout, rest, [*spoken[full * SPEECH_CHUNK :], end])


def _text_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, text: str) -> list[int]:
    return [*tokenizer.encode(prompt.text, add_special_tokens=False), *tokenizer.encode(text, add_special_tokens=False)]


def _unistream(layout: SpeechTokenLayout, words: Sequence[int], codes: Sequence[int]) -> list[int]:
    sos, task_id = layout.first_code_id - 2, layout.first_code_id - 1
    return [sos, *words, task_id, *layout.to_ids(codes)]


def _chunk(layout: SpeechTokenLayout, before: Sequence[int], labels: Sequence[int]) -> list[tuple[int, int | None]]:
    """Ids that predict nothing but for the last, then the codes among the labels, each predicting the next label."""
    silent: list[tuple[int, int | None]] = [(token, None) for token in before[:-1]]
    return silent + list(zip([before[-1], *layout.to_ids(labels[:-1])], labels, strict=True))
