"""The picture of the scores: one bar a layer, with its interval where there is one."""

from __future__ import annotations

from pathlib import Path

from slimtts.results import LayerScores

AXIS_LABELS = {
    "wli": "WER without the layer (capped at 1)",
    "block_influence": "1 - mean cosine of input and output",
    "search": "KL from the teacher without the layer",
}


def plot_scores(scores: LayerScores, out: Path) -> None:
    """Writes a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.5), layout="constrained")
    values = [s.importance for s in scores.layers]
    spans = [(s.importance - s.wer_capped.low, s.wer_capped.high - s.importance) for s in scores.layers if s.wer_capped]
    axes.bar(range(len(values)), values, yerr=list(zip(*spans, strict=True)) or None, color="#4477aa", capsize=3)
    if scores.reference_wer is not None:
        axes.axhline(scores.reference_wer.value, color="#cc6677", label="full model")
        axes.legend()
    axes.set_xticks(range(len(values)))
    axes.set_xlabel("layer")
    axes.set_ylabel(AXIS_LABELS[scores.method])
    axes.set_title(f"{scores.method}, {scores.utterances} utterances")
    figure.savefig(out, dpi=130)
    pyplot.close(figure)
