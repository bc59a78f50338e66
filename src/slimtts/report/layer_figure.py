"""Which of the teacher's layers stayed, and which one each of the student's learns to equal: one picture, as SVG."""

from __future__ import annotations

from html import escape

from slimtts.params import DistillStudentParams
from slimtts.results import PrunePlan

BOX, GAP, LEFT = 34, 8, 74
TEACHER_Y, STUDENT_Y, HEIGHT = 16, 134, 190


def imitated_layers(plan: PrunePlan, knobs: DistillStudentParams) -> list[int] | None:
    """For each layer of the student the teacher's layer whose output it was trained to give; None when for none.

    Says in a few words what slimtts.distill.healing does, whose import would bring torch; a test compares the two.
    """
    loss = knobs.loss
    latent = 1.0 if loss.latent is None else loss.latent
    attention = float(knobs.preset == "spade") if loss.attention is None else loss.attention
    if not knobs.steps or not (latent or attention):
        return None
    if loss.matching == "static":
        return list(plan.retained)
    return [*(following - 1 for following in plan.retained[1:]), plan.num_layers - 1]


def layer_figure(plan: PrunePlan, imitated: list[int] | None) -> str:
    """SVG: the teacher's layers above the student's; a line to what was copied, a dashed one to what is learned."""
    width = LEFT + plan.num_layers * (BOX + GAP)
    shapes = [_label("teacher", TEACHER_Y), _label("student", STUDENT_Y)]
    for place, layer in enumerate(plan.retained):
        x, above = _middle(layer), _middle(layer)
        shapes.append(_line("copied", x, above, f"student layer {place} is a copy of teacher layer {layer}"))
        if imitated is not None and imitated[place] != layer:
            told = f"student layer {place} learns to give what teacher layer {imitated[place]} gives"
            shapes.append(_line("learned", x, _middle(imitated[place]), told))
    for layer in range(plan.num_layers):
        is_kept = layer in plan.retained
        fate = "kept" if is_kept else "dropped"
        shapes.append(_box(fate, layer, TEACHER_Y, str(layer), f"teacher layer {layer}: {fate}"))
    for place, layer in enumerate(plan.retained):
        shapes.append(_box("student", layer, STUDENT_Y, str(place), f"student layer {place}, from layer {layer}"))
    return (
        f'<svg class="layers" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(describe_layers(plan, imitated))}">{"".join(shapes)}</svg>'
    )


def describe_layers(plan: PrunePlan, imitated: list[int] | None) -> str:
    """The same in words."""
    told = f"{len(plan.retained)} of {plan.num_layers} layers stay: {_listed(plan.retained)}. Dropped: "
    told += f"{_listed(plan.dropped) or 'none'}."
    if imitated is not None:
        told += f" In this order, the student's layers learn to give what layers {_listed(imitated)} give."
    return told


def _listed(layers: list[int]) -> str:
    return " ".join(map(str, layers))


def _middle(layer: int) -> float:
    return LEFT + layer * (BOX + GAP) + BOX / 2


def _label(text: str, y: int) -> str:
    return f'<text class="side" x="0" y="{y + BOX / 2 + 4}">{text}</text>'


def _line(kind: str, student_x: float, teacher_x: float, told: str) -> str:
    return (
        f'<line class="{kind}" x1="{student_x}" y1="{STUDENT_Y}" x2="{teacher_x}" y2="{TEACHER_Y + BOX}">'
        f"<title>{told}</title></line>"
    )


def _box(kind: str, layer: int, y: int, text: str, told: str) -> str:
    x = LEFT + layer * (BOX + GAP)
    cross = f'<line x1="{x}" y1="{y + BOX}" x2="{x + BOX}" y2="{y}"/>' if kind == "dropped" else ""
    return (
        f'<g class="{kind}"><title>{told}</title><rect x="{x}" y="{y}" width="{BOX}" height="{BOX}" rx="6"/>{cross}'
        f'<text x="{x + BOX / 2}" y="{y + BOX / 2 + 4}">{text}</text></g>'
    )
