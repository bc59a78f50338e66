"""Does a recording hold speech? What no header tells: level, clipping, phase. Numbers in, a flaw or nothing out.

Thresholds lie far outside of what microphones and studios give. 150 sentences of the bundled corpus: -18 to -6 dBFS
in the loudest frame, at most 0.02 % of the samples at their peak (measured, 2026-11-28).
Legend: N samples, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FRAME_S = 0.025
QUIET_DBFS = -60.0  # of a frame without its mean and slope; a sine at full scale has -3
MIN_ACTIVE_S = 0.1  # of frames above it: a click is no speech
MAX_PEAK = 4.0  # 12 dB above full scale; integers that nobody scaled are far above
AT_PEAK, MAX_AT_PEAK_SHARE = 0.999, 0.25  # of samples within 0.1 % of a channel's peak; a sine has 0.03
MIN_MONO_SHARE = 0.05  # of the channels' power that their average keeps; independent channels keep 0.5


@dataclass(frozen=True)
class Flaw:
    """Why samples cannot be speech; `reason` is a name to count it by."""

    reason: str
    observed: str
    allowed: str
    next_step: str = "replace it or remove the row"


def content_flaw(samples: np.ndarray, sample_rate_hz: int) -> Flaw | None:
    """The first flaw of float [N, C], or None."""
    if not np.isfinite(samples).all():
        return Flaw("not_finite", "samples that are NaN or infinite", "finite samples", "replace it")
    peaks = np.maximum(samples.max(axis=0, initial=0), -samples.min(axis=0, initial=0))  # [C]
    if peaks.max(initial=0) > MAX_PEAK:
        return Flaw("not_scaled", f"samples up to {peaks.max():.6g}", "floating-point samples in -1..1", "scale them")
    active_s = max(_active_s(samples[:, channel], sample_rate_hz) for channel in range(samples.shape[1]))
    if active_s < MIN_ACTIVE_S:
        return _without_speech(samples, active_s)
    for channel, peak in enumerate(peaks.tolist()):
        at_peak = float((np.abs(samples[:, channel]) >= AT_PEAK * peak).mean())
        if peak > 0 and at_peak > MAX_AT_PEAK_SHARE:
            return Flaw(
                "clipped", f"{100 * at_peak:.0f} % of the samples at their limit", f"{100 * MAX_AT_PEAK_SHARE:.0f} %"
            )
    if samples.shape[1] > 1:
        mono = samples.mean(axis=1)
        mono -= mono.mean()
        of_channels = float(np.mean([np.var(samples[:, channel]) for channel in range(samples.shape[1])]))
        share = float(np.mean(np.square(mono))) / of_channels
        if share < MIN_MONO_SHARE:
            return Flaw(
                "opposite_phase",
                f"channels that cancel each other: {100 * share:.1f} % of their power is left in mono",
                f"{100 * MIN_MONO_SHARE:.0f} %",
                "invert one channel, or keep one",
            )
    return None


def _active_s(samples: np.ndarray, sample_rate_hz: int) -> float:
    """Seconds of float [N] in frames that are not quiet."""
    frame = max(1, round(FRAME_S * sample_rate_hz))
    whole = len(samples) // frame
    frames = samples[: whole * frame].reshape(whole, frame)
    place = np.arange(frame, dtype=samples.dtype) - (frame - 1) / 2
    slopes = frames @ place / max(float(place @ place), 1.0)
    power = frames.var(axis=1) - np.square(slopes) * place.var()
    return int((power > 10 ** (QUIET_DBFS / 10)).sum()) * frame / sample_rate_hz


def _without_speech(samples: np.ndarray, active_s: float) -> Flaw:
    allowed = f"{MIN_ACTIVE_S} s above {QUIET_DBFS:.0f} dBFS"
    if not samples.any():
        return Flaw("silent", "digital silence", allowed)
    if not np.ptp(samples, axis=0).any():
        return Flaw("constant", f"nothing but the value {samples[0].max():.3g}", allowed)
    return Flaw("too_quiet", f"{active_s:.3f} s above {QUIET_DBFS:.0f} dBFS", allowed)
