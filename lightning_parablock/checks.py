"""Checks of values that users give, and suggestions for misspelt words.

A failed check raises a ConfigurationError that names the option and says what it takes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lightning_parablock.errors import ConfigurationError

_CUTOFF = 0.7
_MAX_NAME_LENGTH = 64
_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
C = TypeVar("C")


def require(condition: bool, message: str) -> None:
    """Raise a ConfigurationError with the message unless the condition holds."""
    if not condition:
        raise ConfigurationError(message)


def check_int(name: str, value: Any, *, at_least: int, unit: str) -> None:
    """Require a whole number that is not too small.

    Args:
        name: The option, for the message.
        value: What was given.
        at_least: Smallest allowed value.
        unit: What is counted, for the message.
    """
    require(
        isinstance(value, int) and not isinstance(value, bool) and value >= at_least,
        f"{name} must be a whole number >= {at_least} ({unit}), got {value!r}",
    )


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Require one of several words; the message lists them and names the nearest one."""
    require(value in choices, f"{name}={value!r} is not known; {nearest(str(value), choices)}")


def chosen(name: str, value: str | C, base: type[C], choices: Mapping[str, type[C]]) -> C:
    """The object that a value of an option stands for.

    Args:
        name: The option, for the message.
        value: An object with its own settings, or the word for a class, which is made with its defaults.
        base: Base of the classes.
        choices: The classes by their words.

    Raises:
        ConfigurationError: the word is not known.
    """
    if isinstance(value, base):
        return value
    check_choice(name, value, tuple(choices))
    return choices[str(value)]()


def check_pattern(name: str, pattern: Any) -> None:
    """Require a regular expression, one of those that an option takes."""
    require(isinstance(pattern, str), f"each pattern of {name} must be a string, got {pattern!r}")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigurationError(f"{name}: {pattern!r} is not a regular expression: {error}") from error


def check_site_name(name: object) -> None:
    """Raise a ConfigurationError unless a site may have this name.

    Raises:
        ConfigurationError: the name is not 1 to 64 letters, digits, dots, underscores and hyphens, starting with a
            letter or digit.
    """
    if isinstance(name, str) and len(name) <= _MAX_NAME_LENGTH and _SITE_NAME.fullmatch(name):
        return
    raise ConfigurationError(
        f"site must be a name of 1 to {_MAX_NAME_LENGTH} letters (a-z, A-Z), digits, '.', '_' and '-' that begins with "
        f"a letter or a digit, got {name!r:.100}"
    )


def whole(at_least: int, unit: str, *, or_none: bool = False) -> Callable[[str, Any], None]:
    """A check of whole numbers, as :func:`check_int`; None passes where it is allowed."""

    def check(name: str, value: Any) -> None:
        if value is not None or not or_none:
            check_int(name, value, at_least=at_least, unit=unit)

    return check


def above_zero(of: str, *, none: str | None = None) -> Callable[[str, Any], None]:
    """A check of finite numbers > 0.

    Args:
        of: Unit, such as "seconds".
        none: Meaning of None, such as "no limit", where it is allowed.
    """

    def check(name: str, value: Any) -> None:
        number = isinstance(value, (int, float)) and 0 < value < float("inf")
        also = f", or None for {none}" if none else ""
        require(
            number or (value is None and none is not None),
            f"{name} must be a finite number of {of} > 0{also}, got {value!r}",
        )

    return check


def nearest(word: str, choices: Sequence[str]) -> str:
    """The end of an error message that lists the choices and suggests the likely intention, if there is one."""
    close = closest(word, choices, cutoff=0.6)
    hint = f"; did you mean {close!r}?" if close else ""
    return f"choose from {', '.join(map(repr, choices))}{hint}"


def closest(word: str, choices: Sequence[str], cutoff: float = _CUTOFF) -> str | None:
    """The choice most similar to the word, or None if none is similar.

    Args:
        word: What was written.
        choices: What could have been meant.
        cutoff: Similarity that a choice must have, in [0, 1].
    """
    return next(iter(difflib.get_close_matches(word, choices, n=1, cutoff=cutoff)), None)
