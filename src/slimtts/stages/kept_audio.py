"""What of an evaluation can be heard afterwards: some sentences by every system, through the codec, as recorded.

Those drawn at random are fair to every system; those that the student got most wrong are for finding faults.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import soundfile

from slimtts.errors import InvalidInputError
from slimtts.evaluation.systems import SpokenItem
from slimtts.params import Params
from slimtts.results import KeptAudio, KeptSentence
from slimtts.stages.subset_data import BUNDLED, open_source
from slimtts.stages.voices import SpeakingTask
from slimtts.storage import atomic_path
from slimtts.teachers.base import Teacher

logger = logging.getLogger(__name__)

Chosen = Literal["random", "worst"]
WORST_SHARE = 1 / 3  # the others are random: only they can be compared without favour


def choose_kept(items: Sequence[SpokenItem], count: int) -> dict[int, Chosen]:
    """Places of the kept sentences. `items` are the student's, in the split's order, which is random by seed."""
    random_count = min(len(items), count - int(count * WORST_SHARE))
    later = range(random_count, len(items))
    worst = sorted(later, key=lambda i: (-items[i].errors.wer, items[i].similarity, i))[: count - random_count]
    kept: dict[int, Chosen] = dict.fromkeys(range(random_count), "random")
    return kept | dict.fromkeys(sorted(worst), "worst")


def keep_audio(
    params: Params,
    root: Path,
    teacher: Teacher,
    tasks: Sequence[SpeakingTask],
    folders: Mapping[str, Path],
    items: Sequence[SpokenItem],
    out: Path,
) -> None:
    """Writes kept.json and audio/SYSTEM/ID.wav below `out`; `folders` hold what `Hearing` made, `items` the student's.

    Beside the systems: prompt (whose voice it should be), original (the recording through the codec) and, where the
    recording is still at hand, reference.
    """
    places = choose_kept(items, params.evaluate_student.audio_utterances)
    heard: list[str | None] = [None] * len(tasks)
    if "original" in folders:
        heard = json.loads((folders["original"] / "transcripts.json").read_text())
    kept = [tasks[place] for place in places]
    KeptAudio(
        sentences=[
            KeptSentence(
                id=tasks[place].utterance.id,
                text=tasks[place].utterance.text,
                voice=tasks[place].utterance.voice,
                prompt_text=tasks[place].prompt.text,
                original_transcript=heard[place] if tasks[place].utterance.codes else None,
                chosen=chosen,
            )
            for place, chosen in places.items()
        ]
    ).write(out / "kept.json")
    ids = [task.utterance.id for task in kept]
    codes: dict[str, dict[str, Sequence[int]]] = {
        "prompt": {task.utterance.id: task.prompt.codes for task in kept if task.prompt.codes},
        "original": {task.utterance.id: task.utterance.codes for task in kept if task.utterance.codes},
    }
    for name, folder in folders.items():
        if name != "original":
            of_all = json.loads((folder / "codes.json").read_text())
            codes[name] = {utterance_id: of_all[utterance_id] for utterance_id in ids}
    for name, of_id in codes.items():
        if of_id:
            (out / "audio" / name).mkdir(parents=True)
        for utterance_id in of_id:
            wave = teacher.audio(of_id[utterance_id]).numpy()
            path = out / "audio" / name / f"{utterance_id}.wav"
            soundfile.write(path, wave, teacher.codec.sample_rate_hz, subtype="PCM_16")
    keep_recordings(params, root, teacher, ids, out / "audio" / "reference")


def keep_recordings(params: Params, root: Path, teacher: Teacher, ids: Sequence[str], folder: Path) -> None:
    """The corpus' own recordings, at their own rate; a corpus that has gone, or had none, leaves no folder."""
    if params.subset_data.source == BUNDLED:
        return  # it consists of codes
    try:
        recordings = open_source(params, teacher, root).recordings
        present = [utterance_id for utterance_id in ids if utterance_id in recordings]
        if not present:
            return
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            for utterance_id in present:
                wave, rate_hz = recordings[utterance_id].read()
                soundfile.write(temporary / f"{utterance_id}.wav", wave.numpy(), rate_hz, subtype="PCM_16")
    except InvalidInputError as error:
        logger.warning("no recordings are kept to listen to: %s", error)
