"""The language of the bundled teacher: about 170 words that are easy to tell apart by ear, in 21 templates.

Homophones (two/to, four/for), plurals and near-homophones are left out on purpose: a recogniser must be able
to hear every difference that the word error rate will count.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal

Split = Literal["train", "selection", "test"]

WORDS: dict[str, tuple[str, ...]] = {
    "name": tuple(
        "anna peter maria oscar julia thomas robert emma lucas sophie martin helen david laura simon nora".split()
    ),
    "animal": tuple(
        (
            "tiger monkey rabbit horse camel spider eagle turtle wolf lion chicken dolphin penguin donkey sheep fox"
        ).split()
    ),
    "object": tuple(
        (
            "apple bottle window table hammer guitar ticket pencil basket candle mirror letter carpet bicycle "
            "camera umbrella button ladder pillow kettle"
        ).split()
    ),
    "adjective": tuple(
        (
            "green yellow purple orange silver broken heavy little quiet happy angry clever wooden frozen hungry "
            "lazy empty golden giant famous"
        ).split()
    ),
    "verb": tuple(
        (
            "found carried painted followed stole washed opened wanted visited dropped forgot borrowed watched "
            "needed bought kicked moved loved"
        ).split()
    ),
    "command": tuple("bring give show take sell clean call meet".split()),
    "place": tuple(
        (
            "garden kitchen village river forest station museum office hospital market bridge castle island "
            "church desert harbor"
        ).split()
    ),
    "number": tuple("two three four five six seven eight nine eleven twelve twenty hundred".split()),
    "time": tuple("today yesterday tomorrow tonight monday tuesday wednesday saturday".split()),
    "adverb": tuple("slowly quickly never always again together carefully suddenly".split()),
}

TEMPLATES: tuple[str, ...] = (
    "{name} {verb} the {object}",
    "{name} {verb} the {adjective} {object}",
    "the {adjective} {animal} {verb} my {object}",
    "{name} and {name} {verb} the {animal}",
    "please {command} the {adjective} {object}",
    "{time} {name} {verb} the {place}",
    "the {animal} is in the {place}",
    "my {object} was near the {place}",
    "{name} {adverb} {verb} the {object}",
    "{command} the {object} {time}",
    "{name} is {adjective} {time}",
    "please {command} {name} at {number}",
    "the {adjective} {place}",
    "{adjective} {animal} and {adjective} {animal}",
    "{number} {number} {number} {number}",
    "where is my {adjective} {object}",
    "the {object} was {adjective} and {adjective}",
    "{name} {verb} the {animal} near the {place}",
    "the {adjective} {animal} {adverb} {verb} the {adjective} {object}",
    "they {verb} {number} {place} {time}",
    "{name} with the {adjective} {object}",
)


def vocabulary() -> list[str]:
    """Every word of the language, sorted."""
    literal = {word for template in TEMPLATES for word in template.split() if not word.startswith("{")}
    return sorted(literal.union(*WORDS.values()))


def sample_sentence(rng: random.Random) -> str:
    """One sentence of 3 to 8 words; no content word occurs twice in it."""
    template = rng.choice(TEMPLATES)
    used: set[str] = set()
    words: list[str] = []
    for slot in template.split():
        if slot.startswith("{"):
            word = rng.choice([w for w in WORDS[slot[1:-1]] if w not in used])
            used.add(word)
            words.append(word)
        else:
            words.append(slot)
    return " ".join(words)


def split_of(text: str) -> Split:
    """The split that owns a text: 5 % test, 3 % selection, the rest train; a function of the text alone."""
    bucket = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 100
    return "test" if bucket < 5 else "selection" if bucket < 8 else "train"


def unknown_words(text: str) -> list[str]:
    """Words of `text` that the bundled teacher has never heard, in order."""
    known = set(vocabulary())
    return [word for word in text.lower().split() if word.strip(".,!?") not in known]
