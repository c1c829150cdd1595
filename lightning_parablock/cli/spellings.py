"""Short spellings of the command line and of YAML files, written out in full before Lightning's parser reads them.

``--strategy parablock --strategy.local_steps 8`` becomes ``--trainer.strategy`` with a class path, the preset's
settings and the options; a YAML file may have ``strategy:`` at its top level and a preset's name in place of a class
path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import yaml
from lightning.pytorch.strategies import StrategyRegistry

from lightning_parablock.checks import nearest
from lightning_parablock.cli.table import OF_LIGHTNING
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models.names import MODEL_CLASS_PATH
from lightning_parablock.strategy.parablock import ParaBlockStrategy
from lightning_parablock.system.packaged_configs import with_packaged_configs

STRATEGY_CLASS_PATH = f"lightning_parablock.{ParaBlockStrategy.__name__}"
DATA_CLASS_PATH = "lightning_parablock.data.FederatedTextDataModule"
AUTO = "auto"
"""The one strategy name that the Trainer knows and the registry does not."""

Section = dict[str, Any]

_CLASS_NAMES: dict[str, Section] = {
    name: {"class_path": STRATEGY_CLASS_PATH}
    for name in (
        ParaBlockStrategy.__name__,
        f"{ParaBlockStrategy.__module__}.{ParaBlockStrategy.__name__}",
        STRATEGY_CLASS_PATH,
    )
}


_KEYS = ("class_path", "init_args", "dict_kwargs")

_STRATEGY_HELP = {"--trainer.strategy.help": STRATEGY_CLASS_PATH}
_HELP = {**_STRATEGY_HELP, "--model.help": MODEL_CLASS_PATH, "--data.help": DATA_CLASS_PATH}
"""Whose help is meant where no class is named: the default, not the base class of all."""


def presets() -> dict[str, dict[str, Any]]:
    """The registered names of ParaBlock strategies, each with its settings.

    All of them choose a delay, so each name sets it: ``--strategy parablock`` after a file that says ``fedbcd`` is
    not left blocking. Every other setting of an earlier file stays as it is.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in StrategyRegistry.available_strategies():
        entry = cast(Mapping[str, Any], StrategyRegistry[name])
        if isinstance(entry["strategy"], type) and issubclass(entry["strategy"], ParaBlockStrategy):
            found[name] = {"delay_steps": None, **entry["init_params"]}
    return found


def expand_argv(args: Sequence[str], *, own_help: bool = True) -> list[str]:
    """Write out ``--strategy``, its options, presets and packaged configurations in a list of command line arguments.

    Args:
        args: The command line without the program's name.
        own_help: ``--site``, ``--model.help`` and ``--data.help`` are this package's; other programs have their own.

    Raises:
        ConfigurationError: the name of the strategy is not known; the message names the nearest one.
    """
    expanded: list[str] = []
    words = with_packaged_configs(args)
    while words:
        expanded += _expand_word(words.pop(0), words, _HELP if own_help else _STRATEGY_HELP)
    return expanded


def expand_config(content: str) -> str:
    """Write out ``strategy:`` and the presets' names in the text of a YAML file; other text comes back unchanged.

    Raises:
        ConfigurationError: the text is not YAML, gives the strategy twice, or its name is not known.
    """
    try:
        config = yaml.safe_load(content)
    except yaml.YAMLError as error:
        mark: yaml.Mark | None = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise ConfigurationError(f"{where}not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(config, dict):
        return content
    section = cast(Section, config)
    scopes = [section, *(section[name] for name in OF_LIGHTNING if isinstance(section.get(name), dict))]
    changed = [_expand_section(scope) for scope in scopes]
    return yaml.safe_dump(config, sort_keys=False) if any(changed) else content


def check_strategy_name(name: str) -> None:
    """Raise a ConfigurationError that names the nearest strategy unless Lightning knows ``name``."""
    known = [*presets(), AUTO, *StrategyRegistry.available_strategies()]
    if name.lower() in known or "." in name or "{" in name or name == ParaBlockStrategy.__name__:
        return
    close = nearest(name, known).partition("did you mean ")[2].rstrip("?")
    hint = f"did you mean {close}? Choose" if close else "choose"
    raise ConfigurationError(
        f"strategy {name!r} is not known; {hint} {', '.join(presets())}, another name that Lightning knows, or a class "
        "path"
    )


def _expand_word(word: str, following: list[str], help_of: Mapping[str, str]) -> list[str]:
    """One argument written out; takes the value of an option from ``following`` where it needs it."""
    option, equals, value = word.partition("=")
    if option == "--site" and help_of is _HELP:
        option = "--strategy.site"
    if option == "--strategy" or option.startswith("--strategy."):
        option = "--trainer." + option.removeprefix("--")
    if option in help_of and not equals:
        named = following.pop(0) if following and not following[0].startswith("-") else ""
        return [f"{option}={help_of[option] if named.lower() in ('', *presets()) else named}"]
    if option != "--trainer.strategy" or not (equals or following):
        return [option + equals + value]
    return _expand_name(value if equals else following.pop(0))


def _expand_name(name: str) -> list[str]:
    """``fedbcd`` -> a configuration in line: it is laid over earlier files, where a class path would forget them."""
    check_strategy_name(name)
    value = _expand_value(_CLASS_NAMES.get(name, name))
    if isinstance(value, str):
        return [f"--trainer.strategy={value}"]
    return ["--config", json.dumps({"trainer": {"strategy": value}})]


def _expand_section(section: Section) -> bool:
    """Rewrite one section in place; True if anything changed."""
    trainer: Section = section.get("trainer") or {}
    if "strategy" in section:
        if "strategy" in trainer:
            raise ConfigurationError("the strategy is given twice, as `strategy` and as `trainer: strategy`; keep one")
        section["trainer"] = trainer = {**trainer, "strategy": section.pop("strategy")}
    elif "strategy" not in trainer:
        return False
    trainer["strategy"] = _expand_value(trainer["strategy"])
    return True


def _expand_value(given: Any) -> str | Section:
    """A preset's name, or options without a class path, as class path and init args."""
    if isinstance(given, str):
        check_strategy_name(given)
        settings = presets().get(given.lower())
        return given if settings is None else {"class_path": STRATEGY_CLASS_PATH, "init_args": settings}
    if not isinstance(given, dict):
        return given
    value = cast(Section, given)
    if "class_path" not in value:
        return {"class_path": STRATEGY_CLASS_PATH, "init_args": value.get("init_args", value)}
    settings = presets().get(str(value["class_path"]).lower())
    if settings is not None:
        value = {
            **value,
            "class_path": STRATEGY_CLASS_PATH,
            "init_args": {**settings, **(value.get("init_args") or {})},
        }
    _refuse_misplaced(value)
    return value


def _refuse_misplaced(value: Section) -> None:
    """Options beside a class path, or in dict_kwargs, reach no option of the class and would be lost."""
    beside = [name for name in value if name not in _KEYS]
    if beside:
        raise ConfigurationError(
            f"{', '.join(beside)} beside class_path would be ignored: write init_args: {{{beside[0]}: ...}} under "
            "strategy"
        )
    if value["class_path"] in _CLASS_NAMES and value.get("dict_kwargs"):
        raise ConfigurationError(f"dict_kwargs of strategy would be ignored by {STRATEGY_CLASS_PATH}: use init_args")
