"""YAML of mappings and text alone: nothing in it can be read in two ways, and no type is guessed.

Anchors, tags, lists and keys that are given twice are refused: a person and a program might see different things.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

DEEPEST = 4
Plain = str | dict[str, "Plain"]


def read_plain(text: str) -> dict[str, Plain]:
    """The mapping in a text whose size the caller has bounded.

    Raises:
        ValueError: the text is no YAML, or more than mappings of text.
    """
    try:
        events = filter(_is_content, yaml.parse(text, Loader=yaml.BaseLoader))  # one by one: depth is bounded first
        value = _value(next(events), events, 0)
        more = next(events, None)
    except yaml.YAMLError as error:
        mark: yaml.Mark | None = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise ValueError(f"{where}{getattr(error, 'problem', None) or 'it is no YAML'}") from error
    except StopIteration as error:
        raise ValueError("it is empty or cut off") from error
    if isinstance(value, str) or more is not None:
        raise ValueError("it must be one mapping of names to values")
    return value


def _is_content(event: Any) -> bool:
    """All but what only says where a document begins."""
    framing = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent, yaml.DocumentEndEvent)
    return not isinstance(event, framing)


def _value(event: Any, events: Iterator[Any], depth: int) -> Plain:
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None or event.tag is not None:
        raise ValueError(f"{_line(event)}: anchors, aliases and tags are not allowed")
    if isinstance(event, yaml.ScalarEvent):
        return str(event.value)
    if not isinstance(event, yaml.MappingStartEvent) or depth == DEEPEST:
        raise ValueError(f"{_line(event)}: a list, or too deep")
    return _mapping(events, depth + 1)


def _mapping(events: Iterator[Any], depth: int) -> dict[str, Plain]:
    found = dict[str, Plain]()
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _value(event, events, DEEPEST)
        if not isinstance(key, str) or key in found:
            raise ValueError(f"{_line(event)}: {key!r:.60} is given twice")
        found[key] = _value(next(events), events, depth)
    return found


def _line(event: Any) -> str:
    return f"line {event.start_mark.line + 1}"
