"""Options as fields: type, default, help text, check and kind of an option are written once, on one dataclass field.

A class made with :func:`record` holds a group of options. Signatures, ``--help``, the generated reference and
validation read its fields through :func:`options_of`; an ``__init__`` decorated with :func:`accepts` takes the options
as keyword arguments that editors and type checkers see.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, cast, get_args, get_origin, get_type_hints, overload

from typing_extensions import dataclass_transform

from lightning_parablock.checks import check_choice

Check = Callable[[str, Any], None]
"""Takes an option's name and value; raises a ConfigurationError that names the option if the value is wrong."""

Kind = Literal["method", "path", "own"]
"""What depends on an option, and so where it must be the same.

"method": the result; all ranks must agree. "path": only how the result is reached, such as how data travel, or who is
a member of an elastic run when; all ranks must agree. "own": this rank alone; ranks may differ.
"""

REQUIRED = Parameter.empty
"""Default of an option that must be given."""

_KEY = "option"
G = TypeVar("G")
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One option, as users see it.

    Attributes:
        name: Name of the keyword argument.
        type: Type of the values that users give.
        default: Default as users would give it, or :data:`REQUIRED`.
        help: Help text. Its first sentence must be enough for a short list.
        kind: Where the option must be the same.
        group: The class that defines the option; its docstring names the group.
        check: Check of the converted value, or None.
        converter: Turns a given value into the value that the record holds, or None.
        is_keyword: Whether it can only be given by name.
    """

    name: str
    type: Any
    default: Any
    help: str
    kind: Kind
    group: type
    check: Check | None
    converter: Callable[[Any], Any] | None
    is_keyword: bool

    @property
    def brief(self) -> str:
        """The first sentence of the help text, without its period."""
        return self.help.partition(". ")[0].removesuffix(".")

    @property
    def parameter(self) -> Parameter:
        """The option as a parameter of a signature."""
        kind = Parameter.KEYWORD_ONLY if self.is_keyword else Parameter.POSITIONAL_OR_KEYWORD
        return Parameter(self.name, kind, default=self.default, annotation=self.type)


@overload
def option(*, help: str, check: Check | None = None, kind: Kind = "method", kw_only: bool = True) -> Any: ...
@overload
def option(*, default: T, help: str, check: Check | None = None, kind: Kind = "method", kw_only: bool = True) -> T: ...
@overload
def option(
    *,
    default: G,
    converter: Callable[[G], T],
    help: str,
    check: Check | None = None,
    kind: Kind = "method",
    kw_only: bool = True,
) -> T: ...
def option(
    *,
    default: Any = dataclasses.MISSING,
    converter: Callable[[Any], Any] | None = None,
    help: str,
    check: Check | None = None,
    kind: Kind = "method",
    kw_only: bool = True,
) -> Any:
    """A field of a :func:`record` that is an option.

    Args:
        default: Default as users would give it; without one the option is required.
        converter: Turns a given value into the one that the record holds. Its parameter's annotation is the type that
            users see. It must leave values alone that it has converted before: see :func:`keeps`.
        help: Help text, for ``--help`` and the reference. Its first sentence must be enough for a short list.
        check: Check of the converted value. Choices of a ``Literal`` type are checked without it.
        kind: Where the option must be the same.
        kw_only: Whether it can only be given by name.
    """
    about = {"help": help, "check": check, "kind": kind, "converter": converter}
    return dataclasses.field(default=default, kw_only=kw_only, metadata={_KEY: about})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option, dataclasses.field))
def record(cls: type[T]) -> type[T]:
    """Make a frozen, keyword-only dataclass whose constructor documents the options."""
    made = dataclass(frozen=True, kw_only=True)(cls)
    made.__init__.__doc__ = _documented(options_of(made))
    return made


class OptionGroup:
    """Base of records: converts and checks each option on its own.

    A subclass extends ``__post_init__`` by the checks that concern several options, after calling ``super()``.

    Raises:
        ConfigurationError: a value is out of its range or of the wrong kind.
    """

    def __post_init__(self) -> None:
        for each in options_of(type(self)):
            value = getattr(self, each.name)
            if each.converter is not None:
                value = each.converter(value)
                object.__setattr__(self, each.name, value)
            if each.check is not None:
                each.check(each.name, value)


@functools.cache
def options_of(cls: type) -> tuple[Option, ...]:
    """The options of a record in order, inherited ones included; other fields are left out."""
    hints = get_type_hints(cls)
    return tuple(
        _option(cls, field, hints[field.name]) for field in dataclasses.fields(cls) if field.metadata.get(_KEY)
    )


def picked(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the given options that are options of a record."""
    return {each.name: options[each.name] for each in options_of(cls)}


def keeps(kind: type) -> Callable[[Callable[[G], T]], Callable[[G], T]]:
    """Make a converter return values of the given type, which it has converted before, as they are."""

    def decorate(convert: Callable[[G], T]) -> Callable[[G], T]:
        @functools.wraps(convert)
        def converter(given: G) -> T:
            return cast(T, given) if isinstance(given, kind) else convert(given)

        return converter

    return decorate


def accepts(options: Callable[P, Any]) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Give an ``__init__`` that takes ``**options`` the signature and the documentation of a record.

    The function is called with every option by name, as given or with its default.
    """

    def decorate(init: Callable[..., None]) -> Callable[Concatenate[Any, P], None]:
        found = options_of(cast(type, options))
        signature = Signature(
            [Parameter("self", Parameter.POSITIONAL_OR_KEYWORD), *(each.parameter for each in found)],
            return_annotation=None,
        )

        @functools.wraps(init)
        def __init__(self: Any, *args: P.args, **kwargs: P.kwargs) -> None:
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{type(self).__name__}: {error}") from None
            bound.apply_defaults()
            init(**bound.arguments)

        __init__.__doc__ = _documented(found)
        vars(__init__)["__signature__"] = signature
        return __init__

    return decorate


def _option(cls: type, field: dataclasses.Field[Any], hint: Any) -> Option:
    about = field.metadata[_KEY]
    converter = about["converter"]
    given_type = hint if converter is None else next(iter(get_type_hints(inspect.unwrap(converter)).values()))
    group = next(base for base in reversed(cls.__mro__) if field.name in inspect.get_annotations(base))
    return Option(
        name=field.name,
        type=given_type,
        default=REQUIRED if field.default is dataclasses.MISSING else field.default,
        help=about["help"],
        kind=about["kind"],
        group=group,
        check=about["check"] or _check_of_choices(hint),
        converter=converter,
        is_keyword=bool(field.kw_only),
    )


def _check_of_choices(hint: Any) -> Check | None:
    choices = get_args(hint)
    if get_origin(hint) is not Literal:
        return None
    return lambda name, value: check_choice(name, value, choices)


def _documented(options: tuple[Option, ...]) -> str:
    """A docstring in the form that jsonargparse takes help texts from: it needs a sentence first."""
    return "\n".join(["Take the options by name.", "", "Args:", *(f"    {each.name}: {each.help}" for each in options)])
