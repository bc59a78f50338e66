"""Text in, audio out: what the command line, the registered model and a notebook call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from slimtts.data.audio import resample
from slimtts.data.token_corpus import load_token_corpus
from slimtts.decoding.generation import generate_batch
from slimtts.errors import InvalidInputError
from slimtts.params import DecodingParams, TeacherParams
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.loading import load_teacher

MAX_TEXT_CHARACTERS = 500
MAX_PROMPT_S = 10.0
PROMPT_FRAMES = (36, 50)


@dataclass(frozen=True)
class Speaker:
    """A loaded model that speaks. `voices` maps a voice's name to the prompt it is cloned from."""

    model: Teacher
    voices: Mapping[str, Prompt]
    decoding: DecodingParams

    @classmethod
    def load(cls, folder: Path | str | None = None) -> Speaker:
        """A teacher's or student's checkpoint folder; None is the bundled teacher.

        Raises:
            InvalidInputError: the folder is no complete checkpoint of the family.
        """
        source = "bundled" if folder is None else str(folder)
        decoding = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=160, batch_rows=1, seed=0)
        return cls(load_teacher(TeacherParams(family="nano", source=source)), bundled_voices(), decoding)

    @property
    def sample_rate_hz(self) -> int:
        """Of what `speak` returns."""
        return self.model.codec.sample_rate_hz

    def speak(
        self, text: str, voice: str | None = None, prompt_text: str = "", prompt_codes: Sequence[int] = ()
    ) -> np.ndarray:
        """float32 samples [N] in -1..1; in a named voice, or in the voice of the prompt's codes.

        Raises:
            InvalidInputError: text empty or too long, no such voice, or codes that the codec does not have.
        """
        if len(text) > MAX_TEXT_CHARACTERS:
            raise InvalidInputError(
                "text", f"{len(text)} characters", f"at most {MAX_TEXT_CHARACTERS}", "speak it sentence by sentence"
            )
        wrong = [code for code in prompt_codes if not 0 <= code < self.model.layout.num_codes]
        if wrong:
            raise InvalidInputError(
                "prompt codes", wrong[0], f"0..{self.model.layout.num_codes - 1}", "encode the prompt with this codec"
            )
        prompt = Prompt(prompt_text, tuple(prompt_codes)) if prompt_codes else self._voice(voice)
        spoken = text.strip()
        if spoken and spoken[-1] not in ".!?":
            spoken += "."
        ids = self.model.prompt_ids(spoken, prompt)
        made = generate_batch(self.model.model, self.model.layout, [ids], self.decoding)[0]
        samples: np.ndarray = self.model.audio(made.codes).numpy()
        return samples

    def encode_prompt(self, waveform: np.ndarray, sample_rate_hz: int) -> list[int]:
        """float mono [N] -> codes of a voice prompt; resampled to the codec's rate.

        Raises:
            InvalidInputError: not finite, or longer than `MAX_PROMPT_S`.
        """
        seconds = len(waveform) / sample_rate_hz
        if not np.isfinite(waveform).all() or not 0 < seconds <= MAX_PROMPT_S:
            raise InvalidInputError(
                "prompt audio", f"{seconds:.2f} s", f"finite samples, at most {MAX_PROMPT_S} s", "cut the prompt"
            )
        wave = resample(
            torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32)), sample_rate_hz, self.sample_rate_hz
        )
        codes: list[int] = self.model.codec.encode(wave[None])[0].tolist()
        return codes

    def _voice(self, name: str | None) -> Prompt:
        chosen = sorted(self.voices)[0] if name is None else name
        if chosen not in self.voices:
            raise InvalidInputError("voice", chosen, ", ".join(sorted(self.voices)), "choose one of these voices")
        return self.voices[chosen]


def bundled_voices() -> dict[str, Prompt]:
    """One prompt for each voice of the bundled corpus: the first training utterance of a good length."""
    teacher = load_teacher(TeacherParams(family="nano", source="bundled"), with_model=False)
    voices: dict[str, Prompt] = {}
    if teacher.corpus_folder is None:
        return voices
    corpus = load_token_corpus(teacher.corpus_folder)
    for index, row in enumerate(corpus.rows):
        frames = int(corpus.offsets[index + 1] - corpus.offsets[index])
        if row["split"] == "train" and row["voice"] not in voices and PROMPT_FRAMES[0] <= frames <= PROMPT_FRAMES[1]:
            voices[row["voice"]] = Prompt(row["text"], tuple(int(c) for c in corpus.codes_of(index)))
    return voices
