"""An option exists once: signature, help and reference are made from its field."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import pytest

from docs.hooks import options_reference
from lightning_parablock import ParaBlockStrategy
from lightning_parablock.checks import whole
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.options import OptionGroup, accepts, keeps, option, options_of, picked, record
from lightning_parablock.strategy.options import StrategyOptions


@keeps(tuple)
def split(given: str | None) -> tuple[str, ...]:
    return () if given is None else tuple(given.split(","))


@record
class Colors(OptionGroup):
    """Colors."""

    tone: Literal["light", "dark"] = option(default="light", help="Tone of the page. It is that of the frame too.")
    names: tuple[str, ...] = option(default=None, converter=split, kind="own", help="Names of the colors.")


@record
class Sizes(OptionGroup):
    """Sizes."""

    width: int = option(kw_only=False, check=whole(1, "pixels"), help="Width of the page.")


@record
class Page(Colors, Sizes):
    """Both."""


class Taker:
    @accepts(Page)
    def __init__(self, **options: Any) -> None:
        self.given = options
        self.page = Page(**options)


def test_a_record_converts_checks_and_keeps_what_it_has_converted() -> None:
    assert Page(width=3, names="a,b").names == ("a", "b")
    assert Page(width=3, names=("a,b",)).names == ("a,b",)
    with pytest.raises(ConfigurationError, match=r"width must be a whole number >= 1 \(pixels\), got 0"):
        Page(width=0)
    with pytest.raises(ConfigurationError, match=r"tone='drak' is not known; .*did you mean 'dark'"):
        Page(width=1, tone="drak")


def test_what_is_known_of_options() -> None:
    found = {each.name: each for each in options_of(Page)}
    assert list(found) == ["width", "tone", "names"]  # the last base's first
    assert [each.group for each in found.values()] == [Sizes, Colors, Colors]
    assert [each.type for each in found.values()] == [int, Literal["light", "dark"], str | None]
    assert [each.kind for each in found.values()] == ["method", "method", "own"]
    assert [each.brief for each in found.values()] == ["Width of the page", "Tone of the page", "Names of the colors"]


def test_a_function_that_accepts_a_record_gets_every_option_by_name() -> None:
    assert Taker(3).given == {"width": 3, "tone": "light", "names": None}
    assert Taker(width=3, names="a").page == Page(width=3, names=("a",))
    assert picked(Sizes, Taker(3).given) == {"width": 3}
    assert str(inspect.signature(Taker)) == (
        "(width: int, *, tone: Literal['light', 'dark'] = 'light', names: str | None = None) -> None"
    )
    with pytest.raises(TypeError, match="Taker: missing a required argument: 'width'"):
        Taker()
    with pytest.raises(TypeError, match="Taker: got an unexpected keyword argument 'widht'"):
        Taker(3, widht=3)


def test_the_strategys_parameters_are_its_options() -> None:
    parameters = list(inspect.signature(ParaBlockStrategy).parameters.values())
    assert parameters == [each.parameter for each in options_of(StrategyOptions)]
    assert all(each.help.endswith(".") for each in options_of(StrategyOptions))
    with pytest.raises(TypeError, match="ParaBlockStrategy: got an unexpected keyword argument 'local_stepz'"):
        ParaBlockStrategy(local_stepz=3)


@pytest.mark.parametrize("page", options_reference.PAGES, ids=lambda page: page.name)
def test_the_reference_of_the_options_is_up_to_date(page: options_reference.Page) -> None:
    assert page.path.read_text() == page.text(), "run `make options`"


def test_the_base_configuration_is_up_to_date() -> None:
    written = options_reference.CONFIGURATION.read_text()
    assert written == options_reference.configuration(written), "run `make options`"
