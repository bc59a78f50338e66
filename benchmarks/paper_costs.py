"""What each stage costs on paper for a large teacher: floating-point operations, then GPU hours and money.

python -m benchmarks.paper_costs                                    # LLaSA-1B, 5,000 hours of speech
python -m benchmarks.paper_costs --hours 500 --epochs 3 --price 2

A product of a matrix with n weights and a token costs 2 n operations, in training 6 n (forward, and twice that
backward); attention adds 4 T D a layer and token at T tokens, half of it when causal. Work on many tokens at once runs
at `--mfu` of the GPU's peak, speech code by code at `--decoding-mfu`, which is what reading the weights anew for each
code leaves of it. These two, the peak and the price are assumptions, not measurements. Codecs are left out: LLaSA's
corpus is published as codes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from benchmarks.true_sizes import SIZES

HOUR_S = 3600
ASR_PARAMETERS, ASR_TOKENS_A_S = 1.54e9, 50  # whisper-large-v3: about 635 M see 50 positions a second; an upper bound


@dataclass(frozen=True)
class Plan:
    """What is to be done. `utterance_s` is the mean length of a sentence, prompts are as long."""

    hours: float = 5000.0
    epochs: float = 1.0
    keep_share: float = 0.5
    codes_per_s: float = 50.0
    text_tokens_per_s: float = 5.0
    utterance_s: float = 8.0
    takes: float = 0.0
    selection_utterances: int = 64
    beam_width: int = 4
    test_utterances: int = 1000
    systems: int = 4


@dataclass(frozen=True)
class Machine:
    """A GPU. Defaults: H200's dense bf16 peak (data sheet), the rest assumed."""

    peak_tflops: float = 989.0
    mfu: float = 0.4
    decoding_mfu: float = 0.02
    price: float = 3.5


@dataclass(frozen=True)
class Cost:
    """Operations of a stage, GPU hours, and dollars."""

    stage: str
    operations: float
    gpu_hours: float
    dollars: float


@dataclass(frozen=True)
class Sizes:
    """Weights of a layer and of the spoken head, channels, layers."""

    layer: float
    head: float
    width: int
    depth: int

    @classmethod
    def of(cls, config: Any, spoken: int) -> Sizes:
        """From a Llama or Qwen2 configuration and the number of ids that can be spoken."""
        width, head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
        attention = 2 * width * (config.num_attention_heads + config.num_key_value_heads) * head_dim
        layer = attention + 3 * width * config.intermediate_size
        return cls(layer, spoken * width, width, config.num_hidden_layers)

    def forward(self, depth: float, tokens: float, spoken: float, length: float) -> float:
        """Operations of `tokens` through `depth` layers, sequences of `length`, `spoken` of them through the head."""
        return tokens * depth * (2 * self.layer + 4 * length * self.width / 2) + 2 * self.head * spoken


def operations_of(sizes: Sizes, plan: Plan) -> dict[str, tuple[float, float]]:
    """For every stage: operations on many tokens at once, and code by code."""
    codes = plan.utterance_s * plan.codes_per_s
    prompt = codes + 2 * plan.utterance_s * plan.text_tokens_per_s  # the prompt's speech, and both texts
    length, depth, kept = prompt + codes, sizes.depth, sizes.depth * plan.keep_share

    def speak(models: float, layers: float) -> tuple[float, float]:
        heard = models * 2 * ASR_PARAMETERS * ASR_TOKENS_A_S * plan.utterance_s
        return (
            models * sizes.forward(layers, prompt, 0, length) + heard,
            models * sizes.forward(layers, codes, codes, length),
        )

    texts = plan.takes * plan.hours * HOUR_S / plan.utterance_s
    n = plan.selection_utterances
    # The W best sets of each size lose one layer each; a set computes half of its layers on average, and the head.
    sets = [((plan.beam_width if cut > 1 else 1) * (depth - cut + 1), depth - cut) for cut in range(1, depth)]
    search = sum(count * sizes.forward(layers / 2, length, codes, length) for count, layers in sets)
    tokens = plan.epochs * plan.hours * HOUR_S * (plan.codes_per_s + plan.text_tokens_per_s)
    spoken = plan.epochs * plan.hours * HOUR_S * plan.codes_per_s
    teacher, student = (sizes.forward(layers, tokens, spoken, length) for layers in (depth, kept))
    others = speak(plan.test_utterances * (plan.systems - 2), kept)
    full = speak(plan.test_utterances * 2, depth)  # teacher and control
    wli = speak(n * (depth + 1), depth)
    return {
        "subset_data: the teacher speaks": speak(texts, depth),
        "score_layers: WLI": wli,
        "score_layers: search": (n * search, 0.0),
        "score_layers: block influence": (n * sizes.forward(depth, length, 0, length), 0.0),
        "prune_layers": (0.0, 0.0),
        "distill_student: student": (teacher + 3 * student, 0.0),
        "distill_student: control": (3 * teacher, 0.0),
        "evaluate_student": (others[0] + full[0], others[1] + full[1]),
    }


def costs(sizes: Sizes, plan: Plan, machine: Machine) -> list[Cost]:
    """Every stage, and all of them with the search as the method of scoring."""
    rows = []
    for stage, (together, one_by_one) in operations_of(sizes, plan).items():
        seconds = (together / machine.mfu + one_by_one / machine.decoding_mfu) / (machine.peak_tflops * 1e12)
        rows.append(Cost(stage, together + one_by_one, seconds / HOUR_S, seconds / HOUR_S * machine.price))
    used = [row for row in rows if row.stage not in ("score_layers: WLI", "score_layers: block influence")]
    total = [sum(values) for values in zip(*((r.operations, r.gpu_hours, r.dollars) for r in used), strict=True)]
    return [*rows, Cost("all, scored by search", *total)]


def table(rows: list[Cost]) -> str:
    """Markdown."""
    lines = ["| stage | operations | GPU hours | $ |", "|---|---|---|---|"]
    lines += [f"| {r.stage} | {r.operations:.1e} | {r.gpu_hours:.2f} | {r.dollars:.2f} |" for r in rows]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every assumption."""
    for name, default in {**vars(Plan()), **vars(Machine())}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)


def chosen(options: argparse.Namespace) -> tuple[Plan, Machine]:
    """What `add_arguments` read."""
    plan, machine = ({name: getattr(options, name) for name in vars(kind())} for kind in (Plan, Machine))
    return Plan(**plan), Machine(**machine)


def llasa_1b() -> Sizes:
    size = SIZES["llasa-1b"]()
    return Sizes.of(size.config, size.layout.num_codes + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    plan, machine = chosen(parser.parse_args())
    print(f"LLaSA-1B, {plan}, {machine}")
    print(table(costs(llasa_1b(), plan, machine)))


if __name__ == "__main__":
    main()
