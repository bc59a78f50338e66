"""YAML of people and of strangers: plain values, each key once, words as they are written.

Read as YAML 1.2 and as DVC does: `no` is a word (the Norwegian language), `12:30` and `2024-01-01` are words, too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from slimtts.errors import InvalidInputError
from slimtts.outside_files import read_text

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000  # with every alias written out; params.yaml has about 150
NEXT = "correct the file"


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader without YAML 1.1's guesses: yes and no, sexagesimal and octal numbers, dates."""


_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(r"[-+]?((\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$")
_PlainLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _starts in (
    ("bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("merge", re.compile(r"<<$"), "<"),
):
    _PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_starts))


def parse_yaml(text: str, what: str) -> Any:
    """The values of one document; None for an empty one.

    Raises:
        InvalidInputError: no YAML, a key twice, more values than MAX_VALUES, or nested too deeply.
    """
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, what)
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, OverflowError) as error:
        kind = "" if isinstance(error, yaml.YAMLError) else f"{type(error).__name__} "
        raise InvalidInputError(what, f"{kind}{error}"[:300], "valid YAML", NEXT) from None


def read_yaml(path: Path, next_step: str = NEXT) -> Any:
    """The values of a file; `next_step` helps who named a wrong one.

    Raises:
        InvalidInputError: as `parse_yaml`, or the file cannot be read.
    """
    return parse_yaml(read_text(path, str(path), "a file of valid YAML", next_step, MAX_BYTES), str(path))


def _check(root: yaml.Node, what: str) -> None:
    """Refuses keys that stand twice in a mapping, loops, and aliases that multiply."""
    sizes: dict[int, int] = {}

    def size_of(node: yaml.Node) -> int:
        known = sizes.get(id(node))
        if known is not None:
            if not known:
                raise InvalidInputError(what, f"a value that holds itself in line {_line(node)}", "valid YAML", NEXT)
            return known
        sizes[id(node)] = 0  # being counted
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                        raise InvalidInputError(
                            what, f"key '{key.value}' again in line {_line(key)}", "each key once", "remove one of them"
                        )
                    seen.add(key.value)
        total = 1
        for child in children:
            total += size_of(child)
            if total > MAX_VALUES:
                raise InvalidInputError(
                    what, f"more than {MAX_VALUES} values", f"at most {MAX_VALUES}, aliases written out", NEXT
                )
        sizes[id(node)] = total
        return total

    size_of(root)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
