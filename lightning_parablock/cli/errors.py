"""One line for a mistake on the command line or in a configuration file: what is wrong, and what was probably meant."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from lightning_parablock.checks import closest
from lightning_parablock.cli.option_names import class_options, nearest_option
from lightning_parablock.system.packaged_configs import packaged_names

_REQUIRED = r"the following arguments are required: (.+)"
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}


def explain(message: str, options: Sequence[str], written: Mapping[str, str] = MappingProxyType({})) -> str:
    """Turn the parser's message, which may fill a screen, into one line.

    Args:
        message: As jsonargparse words it, with every branch of every union that was tried.
        options: Names of all options, without dashes: the choices for "did you mean".
        written: How keys are written where that differs, by key: options without dashes, other words in capitals.
    """
    message = _with_written_names(message, written)
    for reader in _READERS:
        found = reader(message, options)
        if found:
            return found
    return one_line(message)


def one_line(text: object) -> str:
    """The text with every run of white space as one space."""
    return " ".join(str(text).split())


# --- one reader a kind of mistake -------------------------------------------------------------------------------------


def _unknown_option(message: str, options: Sequence[str]) -> str | None:
    name = _unknown_name(message)
    if name is None:
        return None
    typed = "NestedArg(" in message or name.startswith("-")
    name = name.lstrip("-")
    close = nearest_option(name, [*options, *_options_of_class(message, name.rpartition(".")[0])])
    hint = f"did you mean {_shown(close, typed)}?" if close else "see --help"
    return f"option {_shown(name, typed)} is not known; {hint}"


def _unknown_name(message: str) -> str | None:
    arguments = re.search(r"[Uu]nrecognized arguments: (.*)", message)
    if arguments:
        words = [word for word in arguments[1].split() if word.startswith("-")]
        return words[0].partition("=")[0] if words else None
    option = re.search(r"does not accept option '([^']+)'", message)
    if option:
        return option[1]
    option = re.search(r"Option '([^']+)' is not accepted", message)
    return ".".join([*_path(message[: option.start()]), option[1]]) if option else None


def _option_of_a_name(message: str, options: Sequence[str]) -> str | None:
    """``--strategy ddp --strategy.local_steps 8``: a plain name has no options."""
    inner = _innermost(message)
    nested = re.search(r"Given value: NestedArg\(key='([^']+)'", inner)
    name = re.search(r"Expected a dot import path string: (\S+)", inner)
    if not nested or not name:
        return None
    path = _shown(".".join(_path(message)), typed=True)
    return f"option {path}.{nested[1]} cannot be set: {path} is {name[1]!r}, which has no options; give a class path"


def _wrong_class(message: str, options: Sequence[str]) -> str | None:
    path = _shown(".".join(_path(message)), typed=True)
    problem = re.search(r"Problem with given class_path '([^']+)':\s*\n\s*(.+)", message)
    if problem and not problem[2].startswith(("Parser key", "Does not validate")):
        return f"{path}: {problem[1]!r} cannot be used: {problem[2].strip()}"
    name = re.search(r"Expected a dot import path string: (\S+)", _innermost(message))
    if name and not _choices(_innermost(message)):
        return f"{path}: no class {name[1]!r} is known; give its full path, such as package.module.{name[1]}"
    return None


def _wrong_value(message: str, options: Sequence[str]) -> str | None:
    inner = _innermost(message)
    value = re.search(r"(?:Got value|Given value): (.*)", inner)
    if not _path(message) or not value:
        return None
    shown = _shown(".".join(_path(message)), typed=True)
    choices = _choices(inner)
    types: list[str] = re.findall(r"Expected an? <class '([\w.]+)'>", inner)
    close = closest(value[1], choices)
    hint = f"; did you mean {close!r}?" if close else ""
    if choices and not any(kind in _KINDS for kind in types):
        return f"{shown} must be one of {', '.join(map(repr, choices))}, got {value[1]!r}{hint}"
    kinds = [*map(repr, choices), *(_KINDS.get(kind, kind) for kind in types)]
    return f"{shown} must be {' or '.join(dict.fromkeys(kinds))}, got {value[1]!r}{hint}" if kinds else None


def _wrong_command(message: str, options: Sequence[str]) -> str | None:
    wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
    if wrong:
        choices = re.findall(r"[\w-]+", wrong[2])
        close = closest(wrong[1], choices)
        hint = f"did you mean {close!r}?" if close else f"choose {', '.join(choices)}"
        return f"command {wrong[1]!r} is not known; {hint}"
    missing = re.search(r'expected "subcommand" to be one of \{(.*?)\}', message)
    return f"no command was given; choose {missing[1].replace(',', ', ')}" if missing else None


def _wrong_words(message: str, options: Sequence[str]) -> str | None:
    missing = re.search(r"argument (\S+): expected (?:one|at least one) argument", message)
    if missing:
        return f"option {missing[1].split('/')[-1]} needs a value"
    word = re.search(r"[Uu]nrecognized arguments: (\S+)", message)
    return f"{word[1]!r} is not an option; options begin with --" if word else None


def _missing_option(message: str, options: Sequence[str]) -> str | None:
    missing = re.search(_REQUIRED, message)
    if missing is None:
        return None
    names = [name if name.isupper() else f"--{name}" for name in missing[1].split(", ")]
    return f"{' and '.join(names)} must be given; see --help"


def _with_written_names(message: str, written: Mapping[str, str]) -> str:
    missing = re.search(_REQUIRED, message)
    if missing is None:
        return message
    names = [written.get(name, name) for name in missing[1].split(", ")]
    return f"{message[: missing.start(1)]}{', '.join(names)}"


def _missing_file(message: str, options: Sequence[str]) -> str | None:
    missing = re.search(r"Parser key \"config\": File does not exist: '([^']+)'", message)
    if not missing:
        return None
    path = Path(missing[1])
    siblings = [str(p) for p in path.parent.glob("*") if p.is_file()] if path.parent.is_dir() else []
    close = closest(str(path), siblings) or closest(_name_here(path), packaged_names())
    return f"configuration file {str(path)!r} does not exist" + (f"; did you mean {close!r}?" if close else "")


def _name_here(path: Path) -> str:
    """The path as it was probably typed, seen from the working directory and without its ending."""
    bare = path.with_suffix("")
    return str(bare.relative_to(Path.cwd()) if bare.is_relative_to(Path.cwd()) else bare)


_READERS = (
    _missing_file,
    _missing_option,
    _unknown_option,
    _option_of_a_name,
    _wrong_class,
    _wrong_value,
    _wrong_command,
    _wrong_words,
)

# --- reading the parser's words ---------------------------------------------------------------------------------------


def _path(message: str) -> list[str]:
    return re.findall(r'Parser key "([^"]+)"', message)


def _innermost(message: str) -> str:
    """What was tried for the most deeply nested key, up to and with the value that none of it fitted."""
    inner = message[max(0, message.rfind('Parser key "')) :]
    value = re.search(r"(?:Got value|Given value): .*", inner)
    return inner[: value.end()] if value else inner


def _choices(message: str) -> list[str]:
    literal = re.search(r"Expected a typing\.Literal(\[.*?\])(?:\s|\.|$)", message)
    return [str(choice) for choice in ast.literal_eval(literal[1])] if literal else []


def _shown(name: str, typed: bool) -> str:
    """The option as the user writes it: dashes on the command line, no ``trainer.`` before a strategy there."""
    if not typed:
        return repr(name)
    return "--" + (name.removeprefix("trainer.") if name.startswith("trainer.strategy") else name)


def _options_of_class(message: str, prefix: str) -> list[str]:
    paths = re.findall(r"Problem with given class_path '([^']+)'", message)
    return [f"{prefix}.{name}" for name in class_options(paths[-1])] if paths else []
