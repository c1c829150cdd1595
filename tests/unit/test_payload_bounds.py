"""What a hand-made message of a peer cannot do: take memory, take time, or become what no rank has sent."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_parablock.errors import ConfigurationError, ProtocolError
from lightning_parablock.meeting.introductions import Introduction
from lightning_parablock.system import bounded_json, value_reader
from lightning_parablock.system.payloads import from_bytes, to_bytes
from lightning_parablock.system.value_writer import MOST_DEPTH

HUGE = 1 << 33


def pickled(program: bytes) -> bytes:
    """What torch's unpickler takes for a checkpoint, and runs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {
            "data.pkl": b"\x80\x02" + program + b".",
            "byteorder": b"little",
            "version": b"3\n",
        }.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def doubled(depth: int) -> bytes:
    """A dict whose key is a pair of one pair, ``depth`` times over: hashing it takes 2**depth steps."""
    return b"})" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(depth)) + b"Ns"


def said(value: object, beside: bytes = b"") -> bytes:
    """A payload by hand: its checksum is right."""
    text = json.dumps(value).encode()
    rest = struct.pack("<Q", len(text)) + text + beside
    return b"PBv2" + struct.pack("<I", zlib.crc32(rest)) + rest


@pytest.mark.parametrize(
    "program",
    [
        b"c__builtin__\nbytearray\n" + b"\x8a\x05" + HUGE.to_bytes(5, "little") + b"\x85R",
        doubled(12),
    ],
    ids=["memory", "time"],
)
def test_no_program_of_a_peer_is_run(program: bytes) -> None:
    with pytest.raises(ProtocolError, match="it: a peer sent what is no value"):
        from_bytes(pickled(program), "it")


def _tensor(name: str, shape: Any, number: Any = 0, order: Any = None, flags: Any = (False, False, False)) -> Any:
    own = list(range(len(shape))) if order is None else order
    return {"tensor": [number, name, shape, own, list(flags)]}


COLLIDING = [{"int": hex(k * ((1 << 61) - 1))} for k in range(1, 4000)]
HANDMADE: dict[str, tuple[bytes, str]] = {
    "bytes": (said({"bytearray": HUGE}), "it states 8589934592 bytes where it has 0"),
    "text": (said({"text": HUGE}), "it states 8589934592 bytes"),
    "negative": (said({"bytes": -1}, b"x"), "it states -1 bytes"),
    "tensor": (said(_tensor("float32", [1 << 20, 1 << 20]), bytes(64)), "it states 4398046511104 bytes"),
    "empty tensor": (said(_tensor("int8", [0, -1])), "is no shape"),
    "sizes": (said(_tensor("int8", [1 << 47] * 65)), "is no shape"),
    "array": (said({"array": ["<f8", [1 << 30], False]}, bytes(8)), "it states 8589934592 bytes"),
    "objects": (said({"array": ["|O", [1], False]}, bytes(8)), "is no type of numbers"),
    "texts of numpy": (said({"number": "<U1000000000"}), "is no type of numbers"),
    "twice": (said([{"bytes": 4}, {"bytes": 4}], b"1234"), "it states 4 bytes where it has 0"),
    "shared": (said([_tensor("int8", [4]), _tensor("int8", [400], 0)], b"1234"), "cannot have the memory"),
    "number": (said(_tensor("int8", [4], 7), b"1234"), "is the number of no tensor"),
    "order": (said(_tensor("int8", [4, 1], order=[0, 0]), b"1234"), "is no order of 2 dimensions"),
    "truth": (said(_tensor("bool", [1]), b"\2"), "neither 0 nor 1"),
    "truth of whole numbers": (
        said([_tensor("uint8", [3]), _tensor("bool", [3])], b"\0\1\xff"),
        "neither 0 nor 1",
    ),
    "gradient": (said(_tensor("int8", [1], flags=(True, False, False)), b"\2"), "has no gradient"),
    "left over": (said(3, b"1234"), "4 bytes belong to no value"),
    "unknown": (said({"object": 3}), "it has no 'object'"),
    "two kinds": (said({"set": [], "dict": []}), "is malformed"),
    "odd pairs": (said({"dict": [1]}), "is malformed"),
    "no pairs": (said({"dict": 3}), "is no list of values"),
    "unhashable": (said({"dict": [[1], 2]}), "is malformed"),
    "key twice": (said({"dict": [1, 2, True, 3]}), "a key twice"),
    "collisions": (said({"set": COLLIDING}), "hashes collide"),
    "colliding keys": (said({"dict": [part for key in COLLIDING for part in (key, 0)]}), "hashes collide"),
    "deep": (said(json.loads("[" * 300 + "]" * 300)), "it nests deeper than 100 levels"),
    "deeper": (said(0).replace(b"0", b"["), "a peer sent a value whose checksum is wrong"),
    "short float": (said({"float": "00"}), "is no 1 floating-point"),
    "long complex": (said({"complex": "00" * 17}), "is no 2 floating-point"),
    "device": (said({"device": "house"}), "is no device"),
    "dtype": (said({"dtype": "load"}), "is no type of tensors"),
    "module for a dtype": (said({"dtype": "_inductor"}), "is no type of tensors"),
    "path": (said({"path": ["Path", "a"]}), "it has no 'Path'"),
    "foreign record": (said({"record": ["os.stat_result", []]}), "is no record of this process"),
    "checking record": (
        said({"record": ["lightning_parablock.settings.record.Settings", []]}),
        "is no record of this process",
    ),
    "unloaded module": (said({"record": ["lightning_parablock.__main__.Any", []]}), "is no record of this process"),
    "fields": (said({"record": ["lightning_parablock.meeting.introductions.Introduction", [1]]}), "has 7 fields"),
}


@pytest.mark.parametrize("name", HANDMADE)
def test_what_no_rank_would_send_is_refused_without_the_memory_that_it_states(name: str) -> None:
    data, why = HANDMADE[name]
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="it") as refused:
            from_bytes(data, "it")
        assert tracemalloc.get_traced_memory()[1] < (1 << 20) + 50 * len(data)
    finally:
        tracemalloc.stop()
    assert why in str(refused.value)


def test_a_name_of_a_peer_is_looked_up_in_a_table_and_not_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch imports some of its modules when it is asked for them, and fails where a package of theirs is missing."""
    asked: list[str] = []
    monkeypatch.setattr(torch, "__getattr__", asked.append)
    for name in ("_inductor", "onnx", "no_such_thing"):
        with pytest.raises(ProtocolError, match="is no type of tensors"):
            from_bytes(said({"dtype": name}), "it")
    assert not asked


def test_truth_values_that_share_memory_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a short message of many names for one memory would take the time of as many long ones."""
    looked: list[int] = []
    monkeypatch.setattr(value_reader, "refuse_other_truths", lambda _, part: looked.append(len(part)))
    bools = from_bytes(said([_tensor("uint8", [2]), *(_tensor("bool", [2]) for _ in range(9))], b"\1\0"), "it")[1:]
    assert all(torch.equal(one, torch.tensor([True, False])) for one in bools)
    assert looked == [2]


def test_a_text_of_too_many_values_is_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_json, "MOST_VALUES", 1000)
    with pytest.raises(ProtocolError, match="may have more than 1000 values"):
        from_bytes(said([[]] * 600), "it")


@pytest.mark.parametrize("length", [1 << 20, (1 << 64) - 1])
def test_the_length_of_the_json_is_bounded(length: int) -> None:
    rest = struct.pack("<Q", length) + b"3"
    with pytest.raises(ProtocolError, match=f"states {length} bytes of JSON"):
        from_bytes(b"PBv2" + struct.pack("<I", zlib.crc32(rest)) + rest, "it")


# --- what rank and site send ------------------------------------------------------------------------------------------

_KEYS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: st.tuples(inner, inner) | st.tuples(inner),
    max_leaves=4,
)
_ARRAYS = st.builds(
    lambda kind, shape, seed: np.random.default_rng(seed).integers(0, 2, shape).astype(kind),
    st.sampled_from(["?", "<i4", ">i2", "<f8", ">f4", "<c16", "<f2"]),
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 99),
)
_VALUES = st.recursive(
    _KEYS | st.text(min_size=65) | st.binary(min_size=65) | _ARRAYS,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(_KEYS, inner) | st.sets(_KEYS),
    max_leaves=12,
)


def form(value: Any) -> Any:
    """A value in a form that equals another one where types, bits and order of keys are the same."""
    match value:
        case float():
            return type(value).__name__, struct.pack("<d", value)
        case complex():
            return type(value).__name__, struct.pack("<dd", value.real, value.imag)
        case np.ndarray() | np.generic():
            return type(value).__name__, value.dtype.str, value.shape, value.tobytes()
        case dict():
            return type(value).__name__, [(form(key), form(item)) for key, item in value.items()]
        case set():
            return type(value).__name__, sorted(map(repr, map(form, value)))
        case list() | tuple():
            return type(value).__name__, [form(item) for item in value]
        case _:
            return type(value).__name__, value


@settings(max_examples=400, deadline=None)
@given(_VALUES)
def test_every_plain_value_arrives_with_its_types_and_bits(value: Any) -> None:
    assert form(from_bytes(to_bytes(value, "it"), "it")) == form(value)


@pytest.mark.parametrize(
    "value",
    [
        1 << 100_000,
        -(1 << 63),
        float("nan"),
        struct.unpack("<d", bytes.fromhex("010000000000f4ff"))[0],
        -0.0,
        5e-324,
        "\ud83d\ude00 \ud800",
        "\ud83d" * 70,
        "\n\0" * 5,
        b"x" * 100_000,
        {(-a, -b, -c, -d): 0 for a in (1, 2) for b in (1, 2) for c in (1, 2) for d in (1, 2)},
    ],
    ids=lambda value: type(value).__name__,
)
def test_odd_values_arrive(value: Any) -> None:
    assert form(from_bytes(to_bytes(value, "it"), "it")) == form(value)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16, torch.float16])
def test_tensors_of_every_kind_arrive(dtype: torch.dtype) -> None:
    tensor = (torch.arange(24) % 2).reshape(2, 3, 4).to(dtype)
    arrived = from_bytes(to_bytes(tensor, "it"), "it")
    assert arrived.dtype == dtype and arrived.shape == tensor.shape
    assert torch.equal(arrived.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(120.0).reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.arange(12).reshape(3, 4).t(),
        torch.arange(12)[::2],
        torch.arange(12).reshape(3, 4)[:, 1],
        torch.zeros(1).expand(1000),
        torch.zeros(3, 0, 2),
        torch.tensor(3.0),
        torch.tensor([1 + 2j]).conj(),
        torch.arange(4.0).requires_grad_(),
        nn.Parameter(torch.arange(4), requires_grad=False),
    ],
)
def test_tensors_arrive_as_they_are(tensor: Tensor) -> None:
    arrived = from_bytes(to_bytes([tensor], "it"), "it")[0]
    assert torch.equal(arrived, tensor)
    assert type(arrived) is type(tensor) and arrived.requires_grad == tensor.requires_grad
    if not any(stride == 0 for stride in tensor.stride()) and tensor.numel() == tensor.untyped_storage().nbytes() // 4:
        assert arrived.stride() == tensor.stride()


def test_tied_tensors_travel_once_and_are_tied_where_they_arrive() -> None:
    weight = torch.randn(1000)
    data = to_bytes({"embedding": weight.detach(), "head": weight.detach(), "other": weight.clone()}, "it")
    assert len(data) < 8500
    arrived = from_bytes(data, "it")
    arrived["head"][0] = 7.0
    assert arrived["embedding"][0] == 7.0 and arrived["other"][0] == weight[0]


def test_what_arrives_has_memory_of_its_own() -> None:
    data = bytearray(to_bytes([torch.zeros(3), np.zeros(3), b"\0" * 3, bytearray(3)], "it"))
    tensor, array, text, own = from_bytes(data, "it")
    data[:] = b"\xff" * len(data)
    array[0] = own[0] = tensor[0] = 1
    assert tensor.tolist() == array.tolist() == [1, 0, 0] and text == b"\0\0\0" and own == b"\1\0\0"


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"a": [1, torch.eye(3).to_sparse()]}, "a.1 is a tensor without plain values (torch.sparse_coo"),
        (torch.empty(3, device="meta"), "it is a tensor without plain values (torch.strided, torch.float32, meta)"),
        (np.array(["a"]), "it is a numpy array of <U1"),
        ({"a": np.array([object()])}, "a is a numpy array of object"),
        (np.datetime64("2020"), "it is a numpy array of datetime64"),
        ([1, {2: {3, frozenset()}}], "frozenset"),
        (range(3), "it is a builtins.range"),
    ],
)
def test_values_that_cannot_be_sent_are_named(value: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match="the facts: ") as refused:
        to_bytes(value, "the facts")
    assert named in str(refused.value)


def test_what_contains_itself_is_refused_where_it_would_be_sent() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ConfigurationError, match=f"it nests deeper than {MOST_DEPTH} levels"):
        to_bytes(value, "it")


def test_the_deepest_value_arrives() -> None:
    value: Any = 0
    for _ in range(MOST_DEPTH):
        value = (value,)
    assert from_bytes(to_bytes(value, "it"), "it") == value
    with pytest.raises(ConfigurationError, match="nests deeper"):
        to_bytes([value], "it")


def test_more_odd_keys_than_are_read_are_not_sent() -> None:
    keys = {number: None for number in range((1 << 17) + 1)}
    with pytest.raises(ConfigurationError, match="has more than 131072 keys that are no texts"):
        to_bytes(keys, "it")
    keys.popitem()
    assert from_bytes(to_bytes(keys, "it"), "it") == keys


def test_a_class_of_this_package_travels_by_its_fields_alone() -> None:
    one = Introduction(0, 2, None, "host", 17)
    data = to_bytes(one, "it")
    assert b"lightning_parablock.meeting.introductions.Introduction" in data
    assert from_bytes(data, "it") == one
