"""What was said: transcripts by any Whisper that CTranslate2 can hold, also one with a window below 30 seconds.

faster-whisper's own `transcribe` pads every window to 3,000 mel frames (read in 1.2.1), which a model with fewer
positions refuses; its feature extractor, encoder and tokenizer are used here directly. Windows go in batches of
similar length, and each thread has a batch of its own: none waits for another, and no text depends on their number.
Legend: B windows, M mel bins, S mel frames (100 a second).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from slimtts.errors import InvalidInputError
from slimtts.evaluation.waveforms import is_silent, to_16_khz

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from faster_whisper.tokenizer import Tokenizer

BATCH_WINDOWS = 16
# Whisper gives 30 s of audio 448 decoder positions, at most half of them for new text; shorter windows get their share.
WHISPER_WINDOW_S, WHISPER_POSITIONS = 30, 448
FRAME_SAMPLES = 320
LANGUAGE_KNOBS = "teacher.language or evaluate_student.language"
MODEL_FILES = ("config.json", "model.bin", "tokenizer.json")
PREPROCESSOR = "preprocessor_config.json"  # mel bins and window; without it, 30 s and as many bins as the weights want
CONVERT = (
    "convert the model with ct2-transformers-converter --model WHISPER --output_dir FOLDER "
    f"--copy_files tokenizer.json {PREPROCESSOR}"
)


@dataclass(frozen=True)
class Recognizer:
    """A loaded recogniser. `name` tells model, version of its weights and beam: compare only WERs of equal names."""

    name: str
    beam_size: int
    threads: int
    _whisper: WhisperModel
    _tokenizer: Tokenizer

    @classmethod
    def load(cls, model: str, beam_size: int, threads: int | None = None) -> Recognizer:
        """Loads a CTranslate2 folder, or a Whisper size that is already in the local cache.

        `threads` hear so many batches at once; as many as torch has by default. They share the weights.
        The CPU in float32 on purpose, whatever the weights are stored in: scores from machines with and without a GPU
        stay comparable. Nothing is downloaded.

        Raises:
            InvalidInputError: no such folder or cached model, files are missing in it, or do not belong together.
        """
        from faster_whisper import WhisperModel
        from faster_whisper.tokenizer import Tokenizer

        folder, name = _locate(model)
        threads = threads or torch.get_num_threads()
        whisper = WhisperModel(
            str(folder), device="cpu", compute_type="float32", cpu_threads=1, num_workers=threads, local_files_only=True
        )
        if folder == Path(model):
            _fit_features(whisper, folder)
        tokenizer = Tokenizer(whisper.hf_tokenizer, whisper.model.is_multilingual, task="transcribe", language="en")
        return cls(_with_beam(name, beam_size), beam_size, threads, whisper, tokenizer)

    def in_language(self, language: str) -> Recognizer:
        """The same ears, told to expect another language than English.

        Raises:
            InvalidInputError: a model of English alone, or a language (ISO code) that Whisper does not know.
        """
        from faster_whisper.tokenizer import Tokenizer

        whisper = self._whisper
        if not whisper.model.is_multilingual and language != "en":
            raise InvalidInputError(
                LANGUAGE_KNOBS, f"{language} with {self.name}", "en, which is all that it knows",
                "name a multilingual recogniser in recogniser.model",
            )  # fmt: skip
        try:
            told = Tokenizer(whisper.hf_tokenizer, whisper.model.is_multilingual, task="transcribe", language=language)
        except ValueError as error:
            raise InvalidInputError(LANGUAGE_KNOBS, language, error, "correct params.yaml") from None
        return replace(self, _tokenizer=told)

    def transcribe(self, waveforms: Sequence[np.ndarray], sample_rate_hz: int) -> list[str]:
        """One text for each float32 [samples]; silence gives "". Longer audio is heard window after window.

        Raises:
            InvalidInputError: a waveform is not mono floating point or not finite; the message names its index.
        """
        window = self._whisper.feature_extractor.n_samples
        owners, pieces = [], []
        for owner, wave in enumerate(to_16_khz(waveforms, sample_rate_hz)):
            audible = [piece for piece in cut_into_windows(wave, window) if not is_silent(piece)]
            owners += [owner] * len(audible)
            pieces += audible
        texts: list[list[str]] = [[] for _ in waveforms]
        for owner, text in zip(owners, self._transcribe_pieces(pieces), strict=True):
            texts[owner].append(text)
        return [" ".join(filter(None, parts)) for parts in texts]

    def _transcribe_pieces(self, pieces: list[np.ndarray]) -> list[str]:
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))  # a batch takes as long as its longest text
        together = max(1, min(BATCH_WINDOWS, -(-len(pieces) // self.threads)))
        batches = [order[start : start + together] for start in range(0, len(order), together)]
        with ThreadPoolExecutor(self.threads) as pool:
            heard = pool.map(lambda batch: self._transcribe_windows([pieces[i] for i in batch]), batches)
            texts = {
                i: text for batch, said in zip(batches, heard, strict=True) for i, text in zip(batch, said, strict=True)
            }
        return [texts[i] for i in range(len(pieces))]

    def _transcribe_windows(self, pieces: list[np.ndarray]) -> list[str]:
        extractor = self._whisper.feature_extractor
        # One window a call: the extractor's loudness reference is the maximum over everything it is given. Padding is
        # silence before the log-mel, as in training, not zeros after it.
        features = np.stack(
            [extractor(np.pad(piece, (0, extractor.n_samples - len(piece))), padding=0) for piece in pieces]
        )  # [B, M, S]
        prompt = [*self._tokenizer.sot_sequence, self._tokenizer.no_timestamps]
        results = self._whisper.model.generate(
            self._whisper.encode(features), [prompt] * len(pieces), beam_size=self.beam_size,
            max_length=min(WHISPER_POSITIONS, WHISPER_POSITIONS * extractor.chunk_length // WHISPER_WINDOW_S),
        )  # fmt: skip
        return [self._tokenizer.decode(result.sequences_ids[0]).strip() for result in results]


def _fit_features(whisper: WhisperModel, folder: Path) -> None:
    """Gives an own model as many mel bins as it was trained with, and tries it on a window of silence.

    Raises:
        InvalidInputError: the preprocessor's features are not those of the model.
    """
    from faster_whisper.feature_extractor import FeatureExtractor

    wanted = whisper.model.n_mels
    if not (folder / PREPROCESSOR).is_file():
        whisper.feature_extractor = FeatureExtractor(feature_size=wanted)
    extractor = whisper.feature_extractor
    bins = len(extractor.mel_filters)
    if bins != wanted:
        raise InvalidInputError(str(folder / PREPROCESSOR), f"{bins} mel bins", f"{wanted}, as the model has", CONVERT)
    try:
        whisper.encode(np.zeros((1, wanted, extractor.nb_max_frames), np.float32))
    except (RuntimeError, ValueError) as error:
        observed = f"a window of {extractor.chunk_length} s: {str(error).splitlines()[0]}"
        raise InvalidInputError(f"recogniser {folder}", observed, "the model's own window", CONVERT) from None


def cut_into_windows(waveform: np.ndarray, window: int) -> list[np.ndarray]:
    """Consecutive pieces of at most `window` samples, cut at the quietest 20 ms in the last quarter of a window."""
    pieces = []
    while len(waveform) > window:
        search_from = window - window // 4
        frames = waveform[search_from:window]
        frames = frames[: len(frames) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
        cut = search_from + int(np.square(frames).sum(1).argmin()) * FRAME_SAMPLES + FRAME_SAMPLES // 2
        pieces.append(waveform[:cut])
        waveform = waveform[cut:]
    return [*pieces, waveform]


def recognizer_name(model: str, beam_size: int) -> str:
    """What `Recognizer.load` calls it, without loading it."""
    return _with_beam(_locate(model)[1], beam_size)


def _with_beam(name: str, beam_size: int) -> str:
    return f"{name} beam {beam_size}"


def _locate(model: str) -> tuple[Path, str]:
    """Folder of the model, and a name that changes with its weights."""
    from faster_whisper.utils import available_models, download_model
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder = Path(model)
    if folder.is_dir():
        missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
        if missing:
            # Without its tokenizer faster-whisper would fetch another model's from the network.
            raise InvalidInputError(
                model, f"{', '.join(missing)} missing", f"a folder with {', '.join(MODEL_FILES)}", CONVERT
            )
        with (folder / "model.bin").open("rb") as weights:
            digest = hashlib.file_digest(weights, "sha256").hexdigest()
        return folder, f"{folder.resolve().name}@{digest[:12]}"
    if model not in available_models():
        raise InvalidInputError(
            "recogniser.model", model, f"an existing folder, or one of {', '.join(available_models())}",
            "correct params.yaml",
        )  # fmt: skip
    try:
        snapshot = Path(download_model(model, local_files_only=True))
    except LocalEntryNotFoundError:
        raise InvalidInputError(
            "recogniser.model", f"Whisper {model} is not in the local cache", "a cached size or a CTranslate2 folder",
            f"fetch it once where there is a network: python -c \"import faster_whisper; "
            f"faster_whisper.download_model('{model}')\"",
        ) from None  # fmt: skip
    return snapshot, f"whisper-{model}@{snapshot.name[:12]}"
