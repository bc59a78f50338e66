"""The card that travels with every student: where it comes from, what it scores, how to load it."""

from __future__ import annotations

from slimtts.evaluation.table import evaluation_table
from slimtts.results import EvaluationReport, ModelOrigin, Release, SubsetReport
from slimtts.teachers.sources import HUB_ID


def front_matter(origin: ModelOrigin) -> str:
    """The YAML block that model hubs read at the head of a README.md."""
    lines = [f"license: {origin.license.lower()}", "pipeline_tag: text-to-speech", "library_name: transformers"]
    if HUB_ID.fullmatch(origin.teacher_source):
        lines += [f"base_model: {origin.teacher_source}"]
    return "\n".join(["---", *lines, "---", "", ""])


def model_card(release: Release, report: EvaluationReport, data: SubsetReport, origin: ModelOrigin) -> str:
    """Markdown."""
    lineage = release.lineage
    reasons = "".join(f"- {reason}\n" for reason in release.verdict.reasons)
    train = data.splits["train"]
    student = report.systems["student"]
    source = origin.teacher_source + (f" at {origin.teacher_revision}" if origin.teacher_revision else "")
    opened = (
        "`slimtts export` makes a folder of it that CosyVoice opens"
        if origin.family == "cosyvoice2"
        else "`transformers.AutoModelForCausalLM.from_pretrained(FOLDER)`: it is a standard checkpoint"
    )
    return f"""# {release.model_name}

A text-to-speech language model of family {origin.family}: layers {lineage.retained} of its teacher, {source}, healed
by distillation with the preset `{lineage.preset}` (after SPADE, arXiv 2509.20802). {student.parameters / 1e6:.1f} M
parameters.

## Numbers
{evaluation_table(report)}
MOS is predicted by {report.systems["student"].mos_predictor}.

## Verdict: {release.verdict.decision}
{reasons}
## Data
{train.utterances} utterances, {train.hours:.2f} hours: {100 * data.share:.1f} % of the teacher's
{data.teacher_hours:.1f} training hours, chosen by `{data.strategy}`. The teacher spoke {data.teacher_spoken} texts to
train on.

## Restrictions
{restrictions(origin, report)}
## Lineage
| what | value |
|---|---|
| code | {lineage.git_sha} |
| data | {lineage.data_sha256} |
| teacher | {lineage.teacher_sha256} |
| student | {lineage.student_sha256} |
| DVC outputs | {lineage.dvc_revision} |
| seed | {lineage.seed} |

## Use
`slimtts say "the green tiger" --model FOLDER --out hello.wav`, or
{opened}. The student is bound by the licence of its teacher, {origin.license}.
"""


def restrictions(origin: ModelOrigin, report: EvaluationReport) -> str:
    """What its users may not, or should not, do with it."""
    lines = [f"The licence of the teacher, {origin.license}, holds for this student too."]
    if "-NC" in origin.license.upper():
        lines.append("It forbids commercial use.")
    lines += [
        f"Judged on {report.utterances} sentences of one test set ({report.benchmark}, {report.language}): other "
        "languages, kinds of text and voices were not.",
        "It speaks in the voice of a prompt: use only voices whose owners agreed, and say that it is synthetic.",
        f"It missed its end in {100 * report.systems['student'].no_end_rate:.1f} % of the sentences: limit the length.",
    ]
    return "".join(f"- {line}\n" for line in lines)
