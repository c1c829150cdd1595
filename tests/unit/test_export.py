"""The model as a Hugging Face folder: by the callback at the end of a fit, and by the command from a checkpoint."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.callbacks import HuggingFaceExport
from lightning_parablock.cli import main
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models import CausalLM
from lightning_parablock.models.export import write_model_folder
from tests.unit.tiny_text import byte_tokenizer, llama_config, save_tiny_llama


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), tie_word_embeddings=request.param)


class Own(pl.LightningModule):
    """A user's module."""

    def __init__(self, **attributes: nn.Module) -> None:
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.language_model(**batch).loss  # type: ignore[operator]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: pl.LightningModule, *callbacks: pl.Callback, root: Path, site: str | None = None) -> pl.Trainer:
    ids = torch.randint(0, 256, (8, 6), generator=torch.Generator().manual_seed(0))
    rows: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]
    trainer = pl.Trainer(
        strategy=ParaBlockStrategy(local_steps=2, blocks=2, site=site), accelerator="cpu", devices=1, max_epochs=1,
        callbacks=list(callbacks), default_root_dir=root, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size=2))
    return trainer


def assert_loads_as(folder: Path, network: nn.Module) -> None:
    """Another process would find the same bits, and the same logits."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    found, expected = loaded.state_dict(), network.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    ids = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, network.eval()(ids).logits)  # type: ignore[operator]
    assert loaded.config.use_cache
    assert list(folder.glob("*.safetensors"))


def test_the_callback_and_the_command_leave_the_trained_model(llama: Path, tmp_path: Path) -> None:
    module = CausalLM(str(llama), learning_rate=0.01)
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    trainer = fit(module, HuggingFaceExport(str(tmp_path / "deep" / "model")), root=tmp_path)
    assert any(not torch.equal(before[name], value) for name, value in module.network.state_dict().items())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    command = ["export", "--ckpt_path", str(tmp_path / "last.ckpt"), "--output", str(tmp_path / "exported")]
    assert main(command) == 0
    for folder in (tmp_path / "deep" / "model", tmp_path / "exported"):
        assert_loads_as(folder, module.network)
        assert AutoTokenizer.from_pretrained(folder)("abc").input_ids == byte_tokenizer()("abc").input_ids
    assert not [entry for entry in (*tmp_path.iterdir(), *(tmp_path / "deep").iterdir()) if entry.name.startswith(".")]


def test_a_users_module_with_one_transformers_model(tmp_path: Path) -> None:
    module = Own(language_model=LlamaForCausalLM(llama_config()), head=nn.Linear(2, 2))
    module.tokenizer = byte_tokenizer()
    fit(module, HuggingFaceExport(str(tmp_path / "model")), root=tmp_path)
    assert_loads_as(tmp_path / "model", module.language_model)  # type: ignore[arg-type]
    assert AutoTokenizer.from_pretrained(tmp_path / "model").eos_token == "<end>"


def test_every_site_has_the_model_in_a_folder_of_its_name(tmp_path: Path) -> None:
    module = Own(language_model=LlamaForCausalLM(llama_config()))
    fit(module, HuggingFaceExport(str(tmp_path / "model"), tokenizer=False), root=tmp_path, site="lyon")
    assert_loads_as(tmp_path / "model" / "lyon", module.language_model)  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["lyon"]
    with pytest.raises(ConfigurationError, match=r"lyon.* is not empty"):
        fit(module, HuggingFaceExport(str(tmp_path / "model"), tokenizer=False), root=tmp_path, site="lyon")


@pytest.mark.parametrize(("names", "said"), [([], "Own has none"), (["a", "b"], "Own has several: a, b")])
def test_other_modules_are_refused_before_training(tmp_path: Path, names: list[str], said: str) -> None:
    module = Own(**{name: LlamaForCausalLM(llama_config()) for name in names}, head=nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match=said):
        fit(module, HuggingFaceExport(str(tmp_path / "model")), root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_contents_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    module = Own(language_model=LlamaForCausalLM(llama_config()))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ConfigurationError, match="is not empty; name another one"):
        fit(module, HuggingFaceExport(str(tmp_path)), root=tmp_path)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    with pytest.raises(ConfigurationError, match="is a file"):
        fit(module, HuggingFaceExport(str(tmp_path / "mine"), overwrite=True), root=tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    network = LlamaForCausalLM(llama_config())
    write_model_folder(folder, network, None)
    (folder / "stale.bin").write_text("old")

    def full_disk(*args: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(LlamaForCausalLM, "save_pretrained", full_disk)
        write_model_folder(folder, network, None, overwrite=True)
    assert (folder / "stale.bin").exists()
    assert_loads_as(folder, network)
    write_model_folder(folder, network, None, overwrite=True)
    assert not (folder / "stale.bin").exists()
    assert_loads_as(folder, network)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_tokenizer_that_cannot_be_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny_llama(tmp_path / "llama")
    module = CausalLM(str(folder))
    fit(module, root=tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    folder.rename(tmp_path / "gone")
    command = ["export", "--ckpt_path", str(tmp_path / "last.ckpt"), "--output", str(tmp_path / "model")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "no tokenizer" in error and "--no-tokenizer" in error
    assert not (tmp_path / "model").exists()
    assert main([*command, "--no-tokenizer"]) == 0
    assert_loads_as(tmp_path / "model", module.network)
    assert "tokenizer.json" not in {file.name for file in (tmp_path / "model").iterdir()}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "last.ckpt does not exist"),
        (b"no checkpoint", "cannot be read as a checkpoint"),
        (random.Random(2).randbytes(3000), "cannot be read as a checkpoint"),  # an IndexError in the unpickler
        ({"weights": 1}, "no 'state_dict'"),
        ({"state_dict": {}, "hyper_parameters": {"model": "x"}}, "not saved by CausalLM.*HuggingFaceExport"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, said: str) -> None:
    path = tmp_path / "last.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    assert main(["export", "--ckpt_path", str(path), "--output", str(tmp_path / "model")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(said, line), line
    assert not (tmp_path / "model").exists()


def test_the_command_stands_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    for args, said in ((["--help"], "export"), (["export", "--help"], "--no-tokenizer")):
        with pytest.raises(SystemExit) as end:
            main(args)
        assert end.value.code == 0
        assert said in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["export", "--otput", "x"])
    assert end.value.code == 2
    assert "did you mean --output?" in capsys.readouterr().err
