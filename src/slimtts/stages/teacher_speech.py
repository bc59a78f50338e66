"""Training speech that the teacher speaks itself: of several takes of a text, the one with the fewest word errors.

What a pruned model learns from its own teacher's words keeps more of it than a foreign corpus does (self-data
distillation, arXiv 2410.09982). Finished groups of lines are kept on disk, so an interrupted run goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from slimtts.data.manifest import LONGEST_ID, LONGEST_ID_BYTES, Utterance
from slimtts.data.prompts import assign_prompts
from slimtts.data.splits import Candidate, seeded_rank
from slimtts.data.texts import text_key
from slimtts.decoding.generation import generate
from slimtts.errors import InvalidInputError
from slimtts.evaluation.spoken_forms import count_spoken_errors
from slimtts.evaluation.word_meter import WordCounter
from slimtts.params import DecodingParams, Params
from slimtts.scoring.wli import Transcribe
from slimtts.shared_work import make_items
from slimtts.storage import remove
from slimtts.teachers.base import Prompt, Teacher

LINES_A_GROUP = 128
TAKES_FORMAT = 2  # of kept takes; 1 counted "50" for fifty as an error


@dataclass(frozen=True)
class Line:
    """What the teacher is to say, in whose voice, after which recorded prompt."""

    id: str
    text: str
    voice: str
    prompt: Prompt


@dataclass(frozen=True)
class Take:
    """One attempt at a line, and what was heard."""

    codes: tuple[int, ...]
    ended: bool
    transcript: str
    wer: float


@dataclass(frozen=True)
class Demands:
    """What a take must meet to be trained on."""

    max_wer: float
    min_codes: float

    def flaw(self, take: Take) -> str | None:
        """Why the take is useless, or None."""
        if not take.ended:
            return "spoken_without_end"
        if len(take.codes) < self.min_codes:
            return "spoken_too_short"
        return "spoken_with_errors" if take.wer > self.max_wer else None


def lines_to_speak(
    targets: Sequence[Candidate], train: Sequence[Candidate], recorded: Mapping[str, Utterance], seed: int
) -> list[Line]:
    """Every target with a prompt among `train`, drawn by seed: same voice and, where there is one, another text.

    `recorded` holds the rows of `train` by id.

    Raises:
        InvalidInputError: an id leaves no room for the teacher's version.
    """
    for target in targets:
        name = spoken_id(target.id)
        is_too_long = len(name) > LONGEST_ID or len(name.encode()) > LONGEST_ID_BYTES
        if name in recorded or is_too_long:
            raise InvalidInputError(
                f"utterance '{target.id}'",
                f"'{name}' is {'taken' if name in recorded else 'too long'}",
                f"an id of at most {LONGEST_ID} characters and {LONGEST_ID_BYTES} bytes that no recording has",
                "rename the utterance",
            )
    prompts = assign_prompts(targets, train, seed)
    lines = []
    for target in targets:
        spoken = recorded[prompts[target.id]]
        if text_key(spoken.text) == text_key(target.text):
            others = [row for row in train if row.voice == target.voice and text_key(row.text) != text_key(target.text)]
            spoken = recorded[assign_prompts([target], others or train, seed)[target.id]]
        lines.append(Line(target.id, target.text, target.voice, Prompt(spoken.text, spoken.codes, spoken.voice)))
    return lines


def take_decodings(params: Params, group: int) -> list[DecodingParams]:
    """How each take of a group is decoded: the first as everywhere, the others sampled; every one with its own seed."""
    knobs = params.subset_data
    decodings = []
    for take in range(knobs.teacher_takes):
        rank = seeded_rank(knobs.seed, f"take/{take}/{group}")
        temperature = knobs.teacher_temperature if take else params.decoding.temperature
        changes = {"temperature": temperature, "seed": int.from_bytes(rank[:4], "big")}
        decodings.append(params.decoding.model_copy(update=changes))
    return decodings


def take_wer(text: str, transcript: str, words: WordCounter) -> float:
    """Of one take; in English, errors count only when both conventions see them: as scored, and as spoken.

    Scored alone, perfect readings would be lost to how the recogniser writes: "50" for fifty, "Mr." for mister.
    """
    wer = words.count(text, transcript).wer
    if not wer or words.language != "en":
        return wer
    return min(wer, count_spoken_errors(words.without_marks(text), words.without_marks(transcript)).wer)


def speak_takes(
    teacher: Teacher, lines: Sequence[Line], params: Params, transcribe: Transcribe, group: int, perfect: Demands
) -> list[list[Take]]:
    """Takes of every line in order. A line with a perfect take is not spoken again: no later take could be better."""
    takes: list[list[Take]] = [[] for _ in lines]
    words = WordCounter.of(params)
    for decoding in take_decodings(params, group):
        wanting = [i for i, made in enumerate(takes) if not any(perfect.flaw(take) is None for take in made)]
        if not wanting:
            break
        ids = [teacher.prompt_ids(lines[i].text, lines[i].prompt) for i in wanting]
        spoken = generate(teacher.model, teacher.layout, ids, decoding)
        transcripts = transcribe([teacher.audio(s.codes) for s in spoken])
        for i, made, transcript in zip(wanting, spoken, transcripts, strict=True):
            wer = take_wer(lines[i].text, transcript, words)
            takes[i].append(Take(made.codes, made.ended, transcript, wer))
    return takes


def speak_lines(
    teacher: Teacher,
    lines: Sequence[Line],
    params: Params,
    transcribe: Transcribe,
    min_duration_s: float,
    progress: Path,
    after_group: Callable[[int], object] = lambda _: None,
) -> list[list[Take]]:
    """Takes of all lines; groups already in `progress` are read instead of spoken again."""
    perfect = Demands(max_wer=0.0, min_codes=min_duration_s * teacher.codec.frame_rate_hz)
    takes: list[list[Take]] = []
    for start in range(0, len(lines), LINES_A_GROUP):
        group = lines[start : start + LINES_A_GROUP]
        name = f"group-{start:06d}.jsonl"

        def speak(out: Path, group: Sequence[Line] = group, start: int = start) -> None:
            spoken = speak_takes(teacher, group, params, transcribe, start, perfect)
            out.write_text("".join(json.dumps([asdict(take) for take in made]) + "\n" for made in spoken))

        make_items(progress, {name: speak})
        rows = [json.loads(line) for line in (progress / name).read_text().splitlines()]
        takes += [[Take(**{**take, "codes": tuple(take["codes"])}) for take in row] for row in rows]
        after_group(len(group))
    return takes


def keep_best(
    lines: Sequence[Line], takes: Sequence[Sequence[Take]], demands: Demands, frame_rate_hz: float
) -> tuple[list[Utterance], Counter[str]]:
    """Of each line the sound take with the fewest word errors, the earlier of equals; lines without one are counted.

    The reason of a lost line is the flaw of its take with the fewest errors.
    """
    kept, dropped = [], Counter[str]()
    for line, made in zip(lines, takes, strict=True):
        best = min(made, key=lambda take: (demands.flaw(take) is not None, take.wer))
        flaw = demands.flaw(best)
        if flaw is None:
            kept.append(
                Utterance(spoken_id(line.id), line.text, line.voice, best.codes, len(best.codes) / frame_rate_hz)
            )
        else:
            dropped[flaw] += 1
    return kept, dropped


def misread(
    lines: Sequence[Line], takes: Sequence[Sequence[Take]], demands: Demands, most: int
) -> list[tuple[str, str]]:
    """Texts that were lost to word errors, each with what was heard of its best take; at most `most`."""
    pairs = []
    for line, made in zip(lines, takes, strict=True):
        best = min(made, key=lambda take: (demands.flaw(take) is not None, take.wer))
        if demands.flaw(best) == "spoken_with_errors":
            pairs.append((line.text, best.transcript))
    return pairs[:most]


def spoken_id(recorded_id: str) -> str:
    """Id of the teacher's version."""
    return f"{recorded_id}-spoken"


def progress_folder(root: Path, lines: Sequence[Line], params: Params, teacher: Teacher, recognizer: str) -> Path:
    """Progress of exactly these lines, however strictly they are judged later; that of others is removed."""
    knobs = params.subset_data
    parts = (
        lines, knobs.teacher_takes, knobs.teacher_temperature, knobs.seed, params.decoding, params.recogniser,
        recognizer, params.teacher.language, teacher.weights_sha256, LINES_A_GROUP, TAKES_FORMAT,
    )  # fmt: skip
    mark = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    for other in root.glob("*"):
        if other.name != mark:
            remove(other)
    folder = root / mark
    folder.mkdir(parents=True, exist_ok=True)
    return folder
