"""The public card: one line that survives mail, and is refused where anything in it was changed."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_parablock.errors import CardError
from lightning_parablock.site_kit.card import MOST_CARD_BYTES, Card
from lightning_parablock.site_kit.keys import new_link_keys, new_signing_keys

CARD = Card("ward-1", *(new_link_keys().public for _ in range(2)), new_signing_keys().public, "w.example.org:51820")
LOW_ORDER = (0, 1, 2**255 - 20)


def text_of(number: int) -> str:
    return base64.b64encode(number.to_bytes(32, "little")).decode()


def test_a_card_is_one_line_and_comes_back() -> None:
    for card in (CARD, replace(CARD, endpoint=None), replace(CARD, endpoint="[2001:db8::1]:5")):
        assert len(card.text) < 230 and len(card.text.splitlines()) == 1
        assert Card.parse(card.text) == card == Card.parse(f"\r\n {card.text}\n\n")


def test_a_mail_program_may_break_the_line() -> None:
    assert Card.parse(f"{CARD.text[:78]}\n{CARD.text[78:150]}\r\n  {CARD.text[150:]}") == CARD


def test_each_changed_letter_and_each_cut_is_noticed() -> None:
    text = CARD.text
    for at, letter in enumerate(text):
        for other in "Q0a":
            if letter not in (other, " "):
                with pytest.raises(CardError):
                    Card.parse(text[:at] + other + text[at + 1 :])
        with pytest.raises(CardError):
            Card.parse(text[:at])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "this is no card: a card is one line, parablock-card-1 NAME ENDPOINT KEYS; got ''"),
        ("parablock-card-2 a - QUJD", "this is no card"),
        ("parablock-card-1 a -", "this is no card"),
        ("parablock-card-1 a - QUJD", "card of site 'a', which may have been cut .* 3 bytes instead of 104"),
        ("parablock-card-1 a - Q!UJD", "it is not base64"),
        ("parablock-card-1 " + "a" * 300 + " - QUJD", "card of site 'a{20,}"),
        (CARD.text.replace("ward-1", "ward-2"), "its checksum differs; ask for the card again"),
        (CARD.text.replace("w.example", "x.example"), "its checksum differs"),
    ],
)
def test_what_is_no_card(text: str, named: str) -> None:
    with pytest.raises(CardError, match=named) as found:
        Card.parse(text)
    assert len(str(found.value)) < 400


@pytest.mark.parametrize("number", LOW_ORDER)
def test_keys_of_low_order_protect_nothing(number: int) -> None:
    for field in ("outer_key", "inner_key", "signing_key"):
        with pytest.raises(CardError, match=f"the {field[:5]}.* key on the card of site ward-1 .* low order"):
            replace(CARD, **{field: text_of(number)})


def test_another_spelling_of_a_key_is_refused() -> None:
    for field in ("outer_key", "inner_key", "signing_key"):
        with pytest.raises(CardError, match="another spelling of a smaller number"):
            replace(CARD, **{field: text_of(2**255 - 19 + 3)})
    with pytest.raises(CardError, match="another spelling"):
        replace(CARD, outer_key=text_of(9 + 2**255))
    with pytest.raises(CardError, match="stray bits"):
        replace(CARD, outer_key=CARD.outer_key[:-2] + chr(ord(CARD.outer_key[-2]) + 1) + "=")


def test_the_layers_need_keys_of_their_own() -> None:
    with pytest.raises(CardError, match="one key for both layers"):
        replace(CARD, inner_key=CARD.outer_key)


@pytest.mark.parametrize("endpoint", ["h", "h:0", "h:65536", "h:1\nPostUp = x", "::1:5", "[::1%eth0]:5", ":5", "a b:5"])
def test_nothing_but_an_endpoint_gets_into_a_file_of_wireguard(endpoint: str) -> None:
    with pytest.raises(CardError, match="endpoint must be host:port"):
        replace(CARD, endpoint=endpoint)


@pytest.mark.parametrize("name", ["", "-a", "..", "a/b", "a\nb", "a" * 65, "ä"])
def test_names_that_a_site_may_not_have(name: str) -> None:
    with pytest.raises(CardError, match="site must be a name of 1 to 64 letters"):
        replace(CARD, name=name)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.card"
    with pytest.raises(CardError, match=r"a\.card cannot be read: No such file"):
        Card.read(path)
    path.write_text(CARD.text + "\n")
    assert Card.read(path) == CARD
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CardError, match=r"a\.card is no text file"):
        Card.read(path)
    path.write_text("x" * (MOST_CARD_BYTES + 1))
    with pytest.raises(CardError, match=r"a\.card is larger than 4,096 bytes"):
        Card.read(path)
    with pytest.raises(CardError, match="is no regular file"):
        Card.read(tmp_path)
