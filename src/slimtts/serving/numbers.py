"""What Prometheus is told: calls by outcome, calls in flight, seconds of audio, and how fast they came."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

RTF_BUCKETS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 3.0)
SECONDS_BUCKETS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class ServingNumbers:
    """One server's numbers, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "slimtts_requests", "Calls by endpoint and status; 499: the client left", ["endpoint", "status"],
            registry=registry,
        )  # fmt: skip
        self.cut_streams = Counter(
            "slimtts_cut_streams", "Audio that ended early", ["reason"], registry=registry
        )  # fmt: skip
        self.in_flight = Gauge("slimtts_calls_in_flight", "Calls that generate or wait to", registry=registry)
        self.audio_s = Counter("slimtts_audio_seconds", "Audio sent", registry=registry)
        self.lm_rtf = Histogram(
            "slimtts_lm_rtf", "Seconds in the language model for a second of audio", buckets=RTF_BUCKETS,
            registry=registry,
        )  # fmt: skip
        self.first_audio_s = Histogram(
            "slimtts_first_audio_seconds", "From the request to its first audio", buckets=SECONDS_BUCKETS,
            registry=registry,
        )  # fmt: skip
        self.reloads = Counter("slimtts_reloads", "Attempts to take up a model", ["outcome"], registry=registry)
        self.model = Info("slimtts_model", "The model that speaks", registry=registry)
