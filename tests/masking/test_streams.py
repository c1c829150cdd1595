"""Bytes of masks and their keys, against AES and HMAC of single blocks."""

from __future__ import annotations

import random
import re

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from lightning_parablock.errors import ConfigurationError, StatementError
from lightning_parablock.masking import release
from lightning_parablock.masking.agreement import Lane, SessionKey, pair_key
from lightning_parablock.masking.spent import Spent
from lightning_parablock.masking.streams import PIECE_BYTES, MaskStream, pieces
from lightning_parablock.system.private_extra import not_installed
from tests.masking import oracle

KEY = bytes(range(32))


def read(first: int, stop: int) -> bytes:
    scratch = bytearray(PIECE_BYTES)
    return b"".join(MaskStream(KEY).read(*piece, scratch).tobytes() for piece in pieces(first, stop))


def test_the_stream_is_aes_of_the_counter() -> None:
    assert read(0, 1000) == oracle.key_stream(KEY, 1000)


def test_any_cut_gives_the_same_bytes() -> None:
    whole, dice = oracle.key_stream(KEY, 5000), random.Random(1)
    for _ in range(200):
        first, stop = sorted((dice.randint(0, 5000), dice.randint(0, 5000)))
        assert read(first, stop) == whole[first:stop]


def test_pieces_meet_without_a_seam() -> None:
    size = 2 * PIECE_BYTES + 77
    assert read(5, size) == read(0, size)[5:]
    far = 3 * PIECE_BYTES + 3
    assert read(far - 20, far) == read(PIECE_BYTES, far)[-20:]


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        MaskStream(bytes(16))


@pytest.mark.parametrize(("lane", "code"), [("values", 0), ("scales", 1), ("weights", 2)])
def test_the_key_of_a_pair_is_hkdf_of_all_that_names_the_mask(lane: Lane, code: int) -> None:
    numbers = ((1, 4), (2, 4), (1 << 33, 8), (7, 8))
    info = b"lightning-parablock mask 1" + b"".join(n.to_bytes(size, "big") for n, size in numbers) + bytes([code])
    assert pair_key(KEY, b"salt", 1, 2, 1 << 33, 7, lane) == oracle.derived_key(KEY, b"salt", info)


def test_every_part_of_a_masks_name_changes_its_key() -> None:
    keys = {
        pair_key(KEY, b"a", 1, 2, 3, 4, "values"),
        pair_key(KEY, b"b", 1, 2, 3, 4, "values"),
        pair_key(KEY, b"a", 0, 2, 3, 4, "values"),
        pair_key(KEY, b"a", 1, 3, 3, 4, "values"),
        pair_key(KEY, b"a", 1, 2, 4, 4, "values"),
        pair_key(KEY, b"a", 1, 2, 3, 5, "values"),
        pair_key(KEY, b"a", 1, 2, 3, 4, "scales"),
        pair_key(KEY, b"a", 1, 2, 3, 4, "weights"),
        pair_key(KEY[::-1], b"a", 1, 2, 3, 4, "values"),
    }
    assert len(keys) == 9


def test_two_sites_agree_on_a_secret() -> None:
    a, b = SessionKey.new(), SessionKey.new()
    assert a.secret_with(b.public, "b") == b.secret_with(a.public, "a")
    other = X25519PrivateKey.generate()
    assert a.secret_with(other.public_key().public_bytes_raw(), "c") != a.secret_with(b.public, "b")
    assert a.public != b.public and len(a.public) == 32
    assert str(a.private.private_bytes_raw()) not in repr(a)


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_a_key_with_which_every_secret_is_known_is_refused(public: bytes) -> None:
    with pytest.raises(StatementError, match="session key of site 'b'"):
        SessionKey.new().secret_with(public, "b")


@pytest.mark.parametrize(
    ("version", "named"), [("49.0.1", "cryptography 50 or newer, and 49"), (None, str(not_installed()))]
)
def test_a_missing_or_old_package_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, version: str | None, named: str
) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise release.importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(release.importlib.metadata, "version", installed)
    release.require_installed.cache_clear()
    with pytest.raises(ConfigurationError, match=re.escape(named)) as refused:
        release.require_installed()
    assert "pip install 'lightning-parablock[private]'" in str(refused.value)


def test_a_range_is_taken_once() -> None:
    dice = random.Random(2)
    for _ in range(100):
        spent, taken = Spent(), set[int]()
        for _ in range(30):
            start = dice.randint(0, 60)
            wanted = set(range(start, start + dice.randint(0, 12)))
            assert spent.take(min(wanted, default=start), start + len(wanted)) == (not wanted & taken)
            taken |= wanted if not wanted & taken else set()
            assert spent.total == len(taken)
