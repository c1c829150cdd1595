from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models import gguf_cache
from lightning_parablock.models.causal_lm import CausalLM
from lightning_parablock.models.gguf_cache import cache_root, convert_gguf, converted_folder
from tests.unit.tiny_text import byte_tokenizer


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF....")
    return path


class Converter:
    """Writes one file, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, gguf: Path, folder: Path) -> None:
        self.calls += 1
        (folder / "config.json").write_text("{}")


def test_converts_once(gguf: Path, tmp_path: Path) -> None:
    convert = Converter()
    first, second = (converted_folder(gguf, convert, tmp_path / "cache") for _ in range(2))
    assert first == second and (first / "config.json").is_file()
    assert convert.calls == 1


def test_a_changed_file_is_converted_anew(gguf: Path, tmp_path: Path) -> None:
    convert = Converter()
    first = converted_folder(gguf, convert, tmp_path / "cache")
    os.utime(gguf, ns=(1, 1))
    assert converted_folder(gguf, convert, tmp_path / "cache") != first
    assert convert.calls == 2


def test_a_conversion_that_fails_leaves_nothing_behind(gguf: Path, tmp_path: Path) -> None:
    def convert(_: Path, folder: Path) -> None:
        (folder / "half").write_text("a half")
        raise ConfigurationError("broken in the middle")

    with pytest.raises(ConfigurationError, match="broken in the middle"):
        converted_folder(gguf, convert, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] in ([], [".lock"])
    assert (converted_folder(gguf, Converter(), tmp_path / "cache") / "config.json").is_file()


def test_what_a_killed_conversion_left_is_removed(gguf: Path, tmp_path: Path) -> None:
    folder = converted_folder(gguf, Converter(), tmp_path / "cache")
    stale = folder.rename(folder.with_name(f"{folder.name}.part-killed"))
    converted_folder(gguf, Converter(), tmp_path / "cache")
    assert not stale.exists() and folder.is_dir()


def _convert_and_note(gguf: Path, folder: Path) -> None:
    with (folder.parent / "calls").open("a") as notes:
        notes.write("called\n")
    (folder / "config.json").write_text("{}")


def _convert_in_process(gguf: Path, root: Path) -> None:
    converted_folder(gguf, _convert_and_note, root)


def test_one_process_a_host_converts(gguf: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_convert_in_process, args=(gguf, root)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (root / "calls").read_text() == "called\n"


def test_waiting_for_another_process_has_a_limit(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_cache, "_WAIT_LIMIT_S", 0.05)

    def convert(gguf: Path, folder: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"another process has been converting .*\.lock"):
            converted_folder(gguf, Converter(), tmp_path / "cache")
        (folder / "config.json").write_text("{}")

    converted_folder(gguf, convert, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigurationError, match=r"cannot be written: .*set XDG_CACHE_HOME"):
        converted_folder(gguf, Converter(), tmp_path / "file" / "cache")
    with pytest.raises(ConfigurationError, match=r"gone\.gguf cannot be read"):
        converted_folder(tmp_path / "gone.gguf", Converter(), tmp_path / "cache")


def test_cache_lies_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "lightning-parablock"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "lightning-parablock"


def test_missing_readers_are_named(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_cache, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install gguf accelerate"):
        convert_gguf(gguf, tmp_path)


def test_a_broken_gguf_is_one_clear_error(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tiny\.gguf cannot be read as a GGUF model"):
        convert_gguf(gguf, tmp_path)


def write_tiny_gguf(path: Path) -> dict[str, torch.Tensor]:
    """A one-layer Llama with random float32 weights and a byte tokenizer; returns its tensors by GGUF name."""
    import gguf as format

    writer = format.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(258)
    vocabulary = sorted(byte_tokenizer().get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*(word for word, _ in vocabulary), "ab"])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    shapes = {"attn_q": (8, 8), "attn_k": (8, 8), "attn_v": (8, 8), "attn_output": (8, 8)}
    shapes |= {"ffn_gate": (16, 8), "ffn_up": (16, 8), "ffn_down": (8, 16), "attn_norm": (8,), "ffn_norm": (8,)}
    named: dict[str, Any] = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    named |= {"token_embd.weight": (258, 8), "output_norm.weight": (8,)}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in named.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_real_gguf_file_trains_after_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tensors = write_tiny_gguf(tmp_path / "tiny.gguf")
    module = CausalLM(str(tmp_path / "tiny.gguf"))
    weights = dict(module.network.named_parameters())
    assert torch.equal(weights["model.layers.0.mlp.up_proj.weight"], tensors["blk.0.ffn_up.weight"])
    assert torch.equal(weights["model.embed_tokens.weight"], tensors["token_embd.weight"])
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert not hasattr(module.network.config, "quantization_config")
    assert module.tokenizer("hi")["input_ids"] == byte_tokenizer()("hi")["input_ids"]
    assert module.tokenizer("ab")["input_ids"] == [257]
