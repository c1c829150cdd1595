"""The names of all options, and the one that a wrong name most likely meant."""

from __future__ import annotations

import importlib
from argparse import Action
from collections.abc import Iterable, Sequence
from typing import Any, cast

from jsonargparse import ArgumentParser, Namespace

from lightning_parablock.checks import closest

_EXTRA = ("config", "dry-run", "help", "print_config", "model", "data")
"""Options that the parser's defaults do not list."""


def nearest_option(name: str, options: Iterable[str]) -> str | None:
    """The option that a wrong name most likely meant, or None: by whole name, by section, then by last part."""
    known = list(options)
    for match in (_by_whole_name, _by_section, _by_last_part):
        found = match(name, known)
        if found:
            return found
    return None


def known_options(parser: ArgumentParser) -> list[str]:
    """Every option of the parser without dashes, those of the default classes included, such as ``strategy.blocks``."""
    defaults = parser.get_defaults(skip_validation=True)
    written = written_names(parser)
    names = [str(name).replace(".init_args", "") for name in cast(Iterable[Any], defaults.keys())]
    names = [written.get(name, name) for name in names if not written.get(name, name).isupper()]
    for key in ("trainer.strategy", "model", "data"):
        default = defaults.get(key)
        if isinstance(default, Namespace) and "class_path" in default:
            names += [f"{key}.{name}" for name in class_options(str(default["class_path"]))]
    short = [name.removeprefix("trainer.") for name in names if name.startswith("trainer.strategy.")]
    return list(dict.fromkeys(["strategy", *_EXTRA, *short, *names]))


def written_names(parser: ArgumentParser) -> dict[str, str]:
    """How the keys of a parser are written: options without dashes, such as ``dry-run``, other words in capitals."""
    actions: list[Action] = vars(parser)["_actions"]  # argparse has no public list of them
    return {
        action.dest: action.option_strings[-1].lstrip("-")
        if action.option_strings
        else str(action.metavar or action.dest).upper()
        for action in actions
    }


def class_options(class_path: str) -> list[str]:
    """Names of the options of a class, inherited ones too; empty where the class cannot be imported."""
    module, _, name = class_path.rpartition(".")
    try:
        inner = ArgumentParser(exit_on_error=False)
        inner.add_class_arguments(getattr(importlib.import_module(module), name), fail_untyped=False)
        return [str(key) for key in cast(Iterable[Any], inner.get_defaults(skip_validation=True).keys())]
    except Exception:  # only a hint is at stake, and the error that needs it is being reported already
        return []


def _by_whole_name(name: str, known: Sequence[str]) -> str | None:
    same_section = [k for k in known if k.rpartition(".")[0] == name.rpartition(".")[0]]
    return closest(name, same_section) or closest(name, known, cutoff=0.8)


def _by_section(name: str, known: Sequence[str]) -> str | None:
    section, _, rest = name.partition(".")
    close = closest(section, sorted({k.partition(".")[0] for k in known} - {section}))
    return (f"{close}.{rest}" if rest else close) if close else None


def _by_last_part(name: str, known: Sequence[str]) -> str | None:
    last_parts = {k.rpartition(".")[2]: k for k in reversed(known)}
    close = closest(name.rpartition(".")[2], list(last_parts), cutoff=0.8)
    return last_parts[close] if close else None
