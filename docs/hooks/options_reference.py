"""Writes what is made from the options' fields: ``docs/options.md``, and the strategy's part of ``configs/base.yaml``.

``make options`` runs it; a test compares both files with what it would write.
"""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from lightning_parablock.options import REQUIRED, Kind, Option, options_of
from lightning_parablock.strategy.options import StrategyOptions, TrainerOptions

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "options.md"
CONFIGURATION = ROOT / "configs" / "base.yaml"
_WIDTH = 120
"""Characters per line."""

_INTRODUCTION = """\
<!-- Written by `make options` from the fields in lightning_parablock/settings/ and strategy/options.py. -->

# Options of the strategy

Give an option as an argument of `ParaBlockStrategy`, as `--strategy.NAME` on the command line, or under
`trainer.strategy.init_args` in a YAML file (`null` is `None`). All ranks must have the same value unless an option says
otherwise; the run does not start if they disagree on the method. [ParaBlockStrategy](reference/strategy.md) describes
the objects for `server_optimizer` and `compression`.
"""
_KINDS: dict[Kind, str] = {
    "method": "",
    "path": " It does not affect the result of a run.",
    "own": " Ranks may have different values.",
}
_OF_TRAINER = "# Set by the Trainer or by other keys of it; leave them alone."


def page() -> str:
    """The text of ``docs/options.md``."""
    parts = [_INTRODUCTION]
    for group, options in itertools.groupby(options_of(StrategyOptions), key=lambda option: option.group):
        parts.append(f"## {_title(group)}\n")
        parts += map(_entry, options)
    return "\n".join(parts)


def configuration(current: str) -> str:
    """The text of ``configs/base.yaml``, in which only the strategy's options are replaced."""
    lines = current.splitlines()
    start = lines.index("    init_args:", next(i for i, line in enumerate(lines) if "ParaBlockStrategy" in line)) + 1
    end = lines.index("", start)
    return "\n".join([*lines[:start], *_settings(options_of(StrategyOptions)), *lines[end:], ""])


def _title(group: type) -> str:
    return str(group.__doc__).partition("\n")[0].removesuffix(".")


def _entry(option: Option) -> str:
    default = "" if option.default is REQUIRED else f", default `{_value(option.default)}`"
    facts = f"`{_type(option.type)}`{default}.{_KINDS[option.kind]}"
    text = textwrap.fill(option.help, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return f"### {option.name}\n\n{facts}\n\n{text}\n"


def _value(default: Any) -> str:
    return json.dumps(default) if isinstance(default, str) else str(default)


def _type(hint: Any) -> str:
    """A type as its annotation would be written, choices without ``Literal``."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return " | ".join(map(_value, arguments))
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(_type, arguments))
    if arguments:
        return f"{hint.__name__}[{', '.join(map(_type, arguments))}]"
    return "None" if hint is NoneType else str(hint.__name__)


def _settings(options: Sequence[Option]) -> list[str]:
    lines: list[str] = []
    for option in options:
        line = f"      {option.name}: {_scalar(option.default)}"
        if option.group is not TrainerOptions:
            line += f" # {option.brief.replace('None', 'null')}"
        elif f"      {_OF_TRAINER}" not in lines:
            lines.append(f"      {_OF_TRAINER}")
        lines.append(line)
    return lines


def _scalar(default: Any) -> str:
    value = str(default) if isinstance(default, timedelta) else default
    return value if isinstance(value, str) else yaml.safe_dump(value).partition("\n")[0]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    CONFIGURATION.write_text(configuration(CONFIGURATION.read_text(encoding="utf-8")), encoding="utf-8")
