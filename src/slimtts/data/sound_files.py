"""The one door through which audio comes in: decoded in a child process, refused with a reason when it is no speech.

Bounds of memory and time: `MAX_SAMPLES`, and the limits of `slimtts.sandbox`.
Legend: N samples, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slimtts.data.sound_content import content_flaw
from slimtts.errors import InvalidInputError
from slimtts.sandbox import Answer, Refusal, shared_sandbox

MIN_AUDIO_S = 0.2  # shorter is a broken cut, not speech
MAX_AUDIO_S = 600.0  # longer is a recording that nobody cut into sentences
MIN_RATE_HZ, MAX_RATE_HZ = 8_000, 192_000  # telephone to studio
MAX_CHANNELS = 2
MAX_SAMPLES = 60_000_000  # of all channels: MAX_AUDIO_S in stereo at 48 kHz, 240 MB
PARSERS = "slimtts.data.sound_decoding"
SEGMENT_SLACK_S = 0.025  # manifests round; a segment may end this far past its file


class BadAudioError(InvalidInputError):
    """A recording that cannot be used; `reason` is the name under which it is counted when it is dropped."""

    def __init__(self, what: str, observed: object, allowed: object, next_step: str, reason: str = "") -> None:
        super().__init__(what, observed, allowed, next_step)
        self.reason = f"audio_{reason}"


@dataclass(frozen=True)
class AudioHeader:
    """What a file says about itself."""

    sample_rate_hz: int
    duration_s: float


@dataclass(frozen=True)
class Segment:
    """A part of a longer file."""

    start_s: float
    duration_s: float


def _describe(sound: Path | bytes, utterance_id: str) -> str:
    return f"utterance '{utterance_id}', {sound.name if isinstance(sound, Path) else 'audio in the data'}"


def header_facts(sounds: Sequence[Path]) -> list[dict[str, Any] | None]:
    """What the child says of each file's header, in one call; None where it has to be asked about that file alone."""
    paths = [str(path.absolute()) if _is_file(path) else None for path in sounds]
    try:
        answer = shared_sandbox(PARSERS).call("sound_headers", {"paths": [path for path in paths if path is not None]})
    except Refusal:  # one of them ends the child
        return [None] * len(paths)
    facts = iter(answer.values["headers"])
    return [None if path is None else next(facts) for path in paths]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _decoded(function: str, sound: Path | bytes, what: str, **arguments: Any) -> Answer:
    try:
        if isinstance(sound, Path) and not sound.is_file():
            raise BadAudioError(what, "no such file", "an audio file", "restore it or remove the row", "missing")
    except OSError as error:  # a name that the file system does not take
        raise BadAudioError(what, error.strerror, "an audio file", "correct the path", "missing") from None
    path, content = (str(sound.absolute()), b"") if isinstance(sound, Path) else (None, sound)
    limits = {"path": path, "max_samples": MAX_SAMPLES, "max_channels": MAX_CHANNELS}
    try:
        return shared_sandbox(PARSERS).call(function, {**limits, **arguments}, content)
    except Refusal as refusal:
        raise refused(refusal, what) from None


def refused(refusal: Refusal, what: str) -> BadAudioError:
    """A refusal of the child as an error of `what`."""
    observed = refusal.observed if refusal.allowed else f"unreadable: {refusal.observed.rsplit(': ', 1)[-1]}"
    return BadAudioError(
        what, observed, refusal.allowed or "complete audio, as WAV, FLAC or OGG",
        refusal.next_step or "convert or replace it", refusal.reason,
    )  # fmt: skip


def check_duration(duration_s: float, what: str) -> None:
    """Refuses what is too short or too long for a sentence.

    Raises:
        BadAudioError: outside of MIN_AUDIO_S..MAX_AUDIO_S.
    """
    if not MIN_AUDIO_S <= duration_s <= MAX_AUDIO_S:
        raise BadAudioError(
            what,
            f"{duration_s:.3f} s",
            f"{MIN_AUDIO_S} to {MAX_AUDIO_S:.0f} s",
            "cut it anew or remove the row",
            "too_short" if duration_s < MIN_AUDIO_S else "too_long",
        )


def check_rate(sample_rate_hz: int, what: str) -> None:
    """Refuses rates that no recording of speech has: a resampler's work grows with them.

    Raises:
        BadAudioError: outside of MIN_RATE_HZ..MAX_RATE_HZ.
    """
    if not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
        raise BadAudioError(
            what, f"{sample_rate_hz} Hz", f"{MIN_RATE_HZ} to {MAX_RATE_HZ} Hz", "convert it", "odd_rate"
        )


def check_speech(samples: np.ndarray, sample_rate_hz: int, what: str) -> None:
    """Refuses float [N] that cannot be speech: rate, length, level, clipping.

    Raises:
        BadAudioError: as `slimtts.data.sound_content` says.
    """
    check_rate(sample_rate_hz, what)
    check_duration(len(samples) / sample_rate_hz, what)
    flaw = content_flaw(samples[:, None], sample_rate_hz)
    if flaw is not None:
        raise BadAudioError(what, **vars(flaw))


def read_header(
    sound: Path | bytes,
    expected_rate_hz: int | None,
    utterance_id: str,
    segment: Segment | None = None,
    facts: dict[str, Any] | None = None,
) -> AudioHeader:
    """Length and rate of a file, or of a segment of it, without reading the samples; `bytes` are a whole file's.

    `facts` of `header_facts` spare a call.

    Raises:
        BadAudioError: missing, unreadable, another rate than expected, too many channels, empty, too short or long.
    """
    what = _describe(sound, utterance_id)
    if facts is None:
        facts = _decoded("sound_header", sound, what).values
    return checked_header(facts, expected_rate_hz, what, segment)


def checked_header(
    facts: dict[str, Any], expected_rate_hz: int | None, what: str, segment: Segment | None = None
) -> AudioHeader:
    """What `sound_header` said, held against every limit that needs no samples.

    Raises:
        BadAudioError: as `read_header`.
    """
    if "observed" in facts:
        allowed = "complete audio, as WAV, FLAC or OGG"
        raise BadAudioError(what, str(facts["observed"])[:200], allowed, "convert or replace it", "unreadable")
    rate_hz, channels, frames = (int(facts[key]) for key in ("sample_rate_hz", "channels", "frames"))
    if expected_rate_hz is not None and rate_hz != expected_rate_hz:
        raise BadAudioError(
            what,
            f"{rate_hz} Hz in the header",
            f"{expected_rate_hz} Hz as the manifest says",
            "correct sample_rate_hz or the file",
            "other_rate",
        )
    if channels > MAX_CHANNELS:
        raise BadAudioError(what, f"{channels} channels", "1 or 2", "mix it down to mono", "many_channels")
    if frames <= 0:
        raise BadAudioError(
            what, "empty audio", f"at least {MIN_AUDIO_S} s", "replace it or remove the row", "too_short"
        )
    check_rate(rate_hz, what)
    duration_s = frames / rate_hz
    if segment is not None:
        left_s = duration_s - segment.start_s
        if segment.duration_s > left_s + SEGMENT_SLACK_S:
            raise BadAudioError(
                what,
                f"a segment to {segment.start_s + segment.duration_s:.3f} s",
                f"up to the file's {duration_s:.3f} s",
                "correct the segment or the file",
                "incomplete",
            )
        duration_s = min(segment.duration_s, left_s)
    check_duration(duration_s, what)
    if duration_s * rate_hz * channels > MAX_SAMPLES:
        longest_s = MAX_SAMPLES / rate_hz / channels
        raise BadAudioError(what, f"{duration_s:.1f} s", f"{longest_s:.1f} s at {rate_hz} Hz", "cut it", "too_long")
    return AudioHeader(rate_hz, duration_s)


def read_speech(
    sound: Path | bytes, expected_rate_hz: int | None, utterance_id: str, segment: Segment | None = None
) -> tuple[np.ndarray, int]:
    """Mono float32 [N] and its rate in Hz; two channels are averaged.

    Raises:
        BadAudioError: as `read_header`; the samples cannot be read, are fewer or more than announced, or no speech.
    """
    what = _describe(sound, utterance_id)
    part = {"start_s": 0.0, "duration_s": None} if segment is None else asdict(segment)
    answer = _decoded("sound_samples", sound, what, is_speech=True, **part)
    header = checked_header(answer.values, expected_rate_hz, what, segment)
    return checked_samples(answer, header, what, segment is not None)


def checked_samples(answer: Answer, header: AudioHeader, what: str, is_segment: bool) -> tuple[np.ndarray, int]:
    """The samples of an answer, which must be as many as the header announced.

    Raises:
        BadAudioError: fewer, or no speech.
    """
    samples, rate_hz = np.frombuffer(answer.content, dtype=np.float32), header.sample_rate_hz
    if len(samples) + is_segment < int(header.duration_s * rate_hz):  # a segment's ends are rounded
        raise BadAudioError(
            what,
            f"{len(samples) / rate_hz:.3f} s of {header.duration_s:.3f} s",
            "complete audio",
            "replace it",
            "incomplete",
        )
    if answer.values.get("flaw") is not None:
        raise BadAudioError(what, **{key: str(value)[:200] for key, value in answer.values["flaw"].items()})
    return samples, rate_hz


def read_sound(path: Path, what: str) -> tuple[np.ndarray, int]:
    """Mono float32 [N] and the rate of any audio, silence too: what a system has said, to be shown as it is.

    Raises:
        InvalidInputError: unreadable, an odd rate, or more than MAX_SAMPLES.
    """
    answer = _decoded("sound_samples", path, what, is_speech=False, start_s=0.0, duration_s=None)
    rate_hz, frames = (int(answer.values[key]) for key in ("sample_rate_hz", "frames"))
    check_rate(rate_hz, what)
    if frames and not answer.content:
        raise BadAudioError(what, f"{frames} samples", f"at most {MAX_SAMPLES}", "cut it", "too_long")
    return np.frombuffer(answer.content, dtype=np.float32), rate_hz
