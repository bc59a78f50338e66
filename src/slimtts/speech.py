"""Text in, audio out: what the command line, the registered model and a notebook call."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from slimtts.data.audio import resample
from slimtts.data.manifest import check_codes
from slimtts.data.sound_files import check_rate, check_speech
from slimtts.data.spoken_text import check_spoken_text, check_text_to_speak, has_words
from slimtts.data.token_corpus import load_token_corpus
from slimtts.decoding.generation import generate_batch, spoken_bias, spoken_head
from slimtts.decoding.speculative import SpeculationCounts, speak_with_draft
from slimtts.decoding.streaming import WindowedCodec, stream_audio, stream_codes
from slimtts.decoding.teacher_forcing import ForcedSequence, collate, hidden_states
from slimtts.errors import InvalidInputError
from slimtts.params import DecodingParams, TeacherParams
from slimtts.quantization.placement import place_for_speech
from slimtts.results import Voices
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.checkpoint import probe_logits
from slimtts.teachers.loading import load_beside, load_teacher
from slimtts.teachers.model_folder import ORIGIN, VOICES, params_of

MAX_PROMPT_S = 10.0
MAX_SPEECH_S = 30.0
MAX_NANO_SPEECH_S = 6.4  # its sentences have at most eight words; more only lets endless speech cost more time
PROMPT_FRAMES = (36, 50)
CODEC_AT_HAND = ("nano", "cosyvoice2")  # families whose codec lies in the package or in the model's own folder
SENTENCE_END = re.compile(
    r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])"
)  # the latter: full stop and marks of Chinese and Japanese


@dataclass(frozen=True)
class SpeechPiece:
    """float32 samples [N] in -1..1, and the seconds that the language model took for them."""

    samples: np.ndarray
    lm_s: float


@dataclass(frozen=True)
class Probe:
    """What became of a text: float32 samples [N], codes, whether END came, and whether every number was finite."""

    samples: np.ndarray
    codes: tuple[int, ...]
    ended: bool
    is_finite: bool

    @property
    def repeated_share(self) -> float:
        """Of the codes that are those of one period before, for the period where that is most; speech has below 0.2."""
        codes = np.array(self.codes)
        return max((float((codes[p:] == codes[:-p]).mean()) for p in range(1, len(codes) // 2 + 1)), default=0.0)


@dataclass(frozen=True)
class Speaker:
    """A loaded model that speaks. `voices` maps a voice's name to the prompt it is cloned from.

    Without any voices, the model chooses one unless a prompt is given.
    """

    model: Teacher
    voices: Mapping[str, Prompt]
    decoding: DecodingParams

    @classmethod
    def load(cls, folder: Path | str | None = None) -> Speaker:
        """A teacher's or student's checkpoint folder; None is the bundled teacher.

        The family and codec are those of the folder's slimtts.json, else the family is what its files show; the voices
        those of its voices.json, else, for nano's own codec, the bundled ones.

        Raises:
            InvalidInputError: the folder is no complete checkpoint of its family, or a file beside it is damaged.
        """
        params = TeacherParams(family="nano", source="bundled") if folder is None else params_of(Path(folder))
        if folder is not None and params.family not in CODEC_AT_HAND and not (Path(folder) / ORIGIN).is_file():
            raise InvalidInputError(
                f"model {folder}", f"a model of family {params.family} without {ORIGIN}, which names its codec",
                f"a student, or a teacher with {ORIGIN}",
                f"make a student: slimtts compress --teacher {folder} --codec CODEC",
            )  # fmt: skip
        model = load_teacher(params)
        if place_for_speech(model.model).device.type == "cuda":
            probe_logits(model.model, f"model {folder or 'bundled'} in bf16")
        if folder is not None and (Path(folder) / VOICES).is_file():
            voices = read_voices(Path(folder) / VOICES, model)
        else:
            voices = bundled_voices() if params.family == "nano" and not params.codec else {}
        longest_s = MAX_NANO_SPEECH_S if params.family == "nano" else MAX_SPEECH_S
        tokens = round(longest_s * model.codec.frame_rate_hz)
        return cls(
            model, voices, DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=tokens, batch_rows=1, seed=0)
        )

    @property
    def sample_rate_hz(self) -> int:
        """Of what `speak` returns."""
        return self.model.codec.sample_rate_hz

    def speak(
        self, text: str, voice: str | None = None, prompt_text: str = "", prompt_codes: Sequence[int] = ()
    ) -> np.ndarray:
        """float32 samples [N] in -1..1; in a named voice, or in the voice of the prompt's codes.

        Raises:
            InvalidInputError: a text that cannot be spoken, no such voice, or codes that the codec does not have.
        """
        ids = self._prompt_ids(text, self._prompt(text, voice, prompt_text, prompt_codes))
        made = generate_batch(self.model.model, self.model.layout, [ids], self.decoding)[0]
        samples: np.ndarray = self.model.audio(made.codes).numpy()
        return samples

    def probe(self, text: str) -> Probe:
        """As `speak`, in the first voice, with what tells speech from noise.

        Raises:
            InvalidInputError: as `speak`.
        """
        ids = self._prompt_ids(text, self._prompt(text, None, "", ()))
        made = generate_batch(self.model.model, self.model.layout, [ids], self.decoding)[0]
        samples: np.ndarray = self.model.audio(made.codes).numpy()
        return Probe(samples, made.codes, made.ended, self._is_finite([*ids, *self.model.layout.to_ids(made.codes)]))

    @torch.inference_mode()
    def _is_finite(self, ids: Sequence[int]) -> bool:
        """Are the model's states and the logits of what it can say, at each of these ids?"""
        model, layout = self.model.model, self.model.layout
        batch = collate([ForcedSequence(tuple(ids), 0, ())], layout.pad_id).to(next(model.parameters()).device)
        hidden = hidden_states(model, batch).cpu().float()
        bias = spoken_bias(model, layout)
        logits = F.linear(
            hidden, spoken_head(model, layout).cpu().float(), None if bias is None else bias.cpu().float()
        )
        return bool(hidden.isfinite().all() and logits.isfinite().all())

    def speak_with_draft(
        self, text: str, draft: Path | str, voice: str | None = None, rule: str = "exact"
    ) -> tuple[np.ndarray, SpeculationCounts]:
        """As `speak`, with a student of this model in the folder `draft` proposing codes; and what became of them.

        Raises:
            InvalidInputError: as `speak`; no such rule, or no student of this model.
        """
        student, prompt = load_beside(self.model, Path(draft)), self._prompt(text, voice, "", ())
        place_for_speech(student.model)
        made, counts = speak_with_draft(self.model, student, self._as_written(text), prompt, self.decoding, rule)
        samples: np.ndarray = self.model.audio(made.codes).numpy()
        return samples, counts

    def stream(
        self,
        text: str,
        voice: str | None = None,
        prompt_text: str = "",
        prompt_codes: Sequence[int] = (),
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Iterator[SpeechPiece]:
        """What `speak` returns, in pieces as they are made; ends early when `is_wanted`, asked at each code, says no.

        A codec whose reach is not known gives a piece a sentence, each spoken by itself.

        Raises:
            InvalidInputError: as `speak`, before the first piece.
        """
        prompt = self._prompt(text, voice, prompt_text, prompt_codes)
        parts = [text] if isinstance(self.model.codec, WindowedCodec) else sentences(text)
        return self._pieces([self._prompt_ids(part, prompt) for part in parts], is_wanted)

    def _pieces(self, prompts: Sequence[Sequence[int]], is_wanted: Callable[[], bool]) -> Iterator[SpeechPiece]:
        codec, lm_s = self.model.codec, 0.0

        def codes_of(ids: Sequence[int]) -> Iterator[int]:
            nonlocal lm_s
            codes = stream_codes(self.model.model, self.model.layout, ids, self.decoding)
            start = time.perf_counter()
            for code in codes:
                lm_s += time.perf_counter() - start
                if not is_wanted():
                    return
                yield code
                start = time.perf_counter()
            lm_s += time.perf_counter() - start

        for ids in prompts:
            codes = codes_of(ids)
            audio = stream_audio(codes, codec) if isinstance(codec, WindowedCodec) else [self.model.audio(list(codes))]
            for samples in audio:
                if len(samples):
                    yield SpeechPiece(samples.numpy(), lm_s)
                    lm_s = 0.0

    def _prompt(self, text: str, voice: str | None, prompt_text: str, prompt_codes: Sequence[int]) -> Prompt:
        check_text_to_speak(text)
        if prompt_text.strip():
            check_spoken_text(prompt_text, "prompt text")
        wrong = [code for code in prompt_codes if not 0 <= code < self.model.layout.num_codes]
        if wrong:
            raise InvalidInputError(
                "prompt codes", wrong[0], f"0..{self.model.layout.num_codes - 1}", "encode the prompt with this codec"
            )
        return Prompt(prompt_text, tuple(prompt_codes)) if prompt_codes else self._voice(voice)

    def _prompt_ids(self, text: str, prompt: Prompt) -> list[int]:
        return self.model.prompt_ids(self._as_written(text), prompt)

    def _as_written(self, text: str) -> str:
        spoken = text.strip()
        if self.model.family.name == "nano" and spoken and spoken[-1] not in ".!?":
            spoken += "."  # it has heard no sentence without
        return spoken

    def encode_prompt(self, waveform: np.ndarray, sample_rate_hz: int) -> list[int]:
        """float mono [N] -> codes of a voice prompt; resampled to the codec's rate.

        Raises:
            InvalidInputError: longer than `MAX_PROMPT_S`, or no speech.
        """
        check_rate(sample_rate_hz, "prompt audio")
        seconds = len(waveform) / sample_rate_hz
        if waveform.ndim != 1 or seconds > MAX_PROMPT_S:
            observed = f"{waveform.ndim} dimensions, {seconds:.2f} s"
            raise InvalidInputError("prompt audio", observed, f"mono, at most {MAX_PROMPT_S} s", "cut the prompt")
        check_speech(waveform, sample_rate_hz, "prompt audio")
        wave = resample(
            torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32)), sample_rate_hz, self.sample_rate_hz
        )
        codes: list[int] = self.model.codec.encode(wave[None])[0].tolist()
        return codes

    def _voice(self, name: str | None) -> Prompt:
        if name is None:
            return self.voices[min(self.voices)] if self.voices else Prompt()
        if name not in self.voices:
            known = ", ".join(sorted(self.voices))
            raise InvalidInputError(
                "voice", name[:80], known or "none: this model came without voices", "choose one of these, or none"
            )
        return self.voices[name]


def sentences(text: str) -> list[str]:
    """The sentences of a text; marks without a word stay with the sentence before them, or the one after the first."""
    parts: list[str] = []
    for part in SENTENCE_END.split(text.strip()):
        if parts and not has_words(part):
            parts[-1] += part
        elif parts and not has_words(parts[-1]):
            parts[-1] += f" {part}"
        else:
            parts.append(part)
    return parts


def read_voices(path: Path, model: Teacher) -> dict[str, Prompt]:
    """The prompts of a voices.json.

    Raises:
        InvalidInputError: the file is damaged, or holds codes that the model's codec does not have.
    """
    prompts: dict[str, Prompt] = {}
    for name, said in Voices.read(path).voices.items():
        if said.text.strip():
            check_spoken_text(said.text, f"{path}, voice {name}, text")
        if said.codes:
            check_codes(f"{path}, voice {name}", said.codes, model.layout.num_codes)
        prompts[name] = Prompt(said.text, tuple(said.codes), name)
    return prompts


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
