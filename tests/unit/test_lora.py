"""LoRA adapters: what trains, what is sent, and that checkpoints and exports carry what they have learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.partition import partition
from lightning_parablock.callbacks import HuggingFaceExport
from lightning_parablock.cli import main
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models import CausalLM
from tests.unit.tiny_text import save_tiny_llama, write_jsonl

RANK = 4
IDS = torch.randint(0, 256, (8, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def llama(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"), tie_word_embeddings=request.param)


def with_adapters(folder: Path, **options: Any) -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(str(folder), **{"lora_rank": RANK, "learning_rate": 0.01, **options})


def trained(module: CausalLM, root: Path, *callbacks: pl.Callback, blocks: Any = 1, **fit: Any) -> pl.Trainer:
    rows: Any = [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in IDS]
    trainer = pl.Trainer(
        strategy=ParaBlockStrategy(local_steps=2, blocks=blocks), accelerator="cpu", devices=1,
        max_steps=fit.pop("max_steps", 8), max_epochs=-1, callbacks=list(callbacks), default_root_dir=root,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size=2), **fit)
    return trainer


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(IDS).logits


def test_a_fresh_adapter_changes_nothing_and_is_drawn_from_the_seed(llama: Path) -> None:
    one, other = with_adapters(llama), with_adapters(llama)
    assert torch.equal(logits(one.network), logits(CausalLM(str(llama)).network))
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    drawn = [p for name, p in one.named_parameters() if ".lora_A." in name]
    assert drawn and all(p.abs().sum() > 0 for p in drawn)


@pytest.mark.parametrize(("blocks", "names"), [(1, ["layers.0..layers.1"]), ("layers", ["layers.0", "layers.1"])])
def test_adapters_alone_form_blocks_and_train(llama: Path, tmp_path: Path, blocks: Any, names: list[str]) -> None:
    module = with_adapters(llama)
    found = partition(module, blocks)
    assert [block.name for block in found] == names
    # q, o: 16 to 16; k, v: 16 to 8; gate, up, down: 16 and 32
    assert sum(block.numel for block in found) == 2 * RANK * (2 * 32 + 2 * 24 + 3 * 48)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trained(module, tmp_path, blocks=blocks)
    for name, parameter in module.named_parameters():
        is_adapter = ".lora_" in name
        assert parameter.requires_grad == is_adapter
        assert torch.equal(parameter, before[name]) == (not is_adapter), name


def test_exports_are_plain_models_that_compute_the_same(llama: Path, tmp_path: Path) -> None:
    module = with_adapters(llama, learning_rate=0.1, lora_alpha=3, lora_targets=["q_proj", "down_proj"])
    start = logits(module.network)
    trained(module, tmp_path, HuggingFaceExport(str(tmp_path / "callback"))).save_checkpoint(tmp_path / "last.ckpt")
    words = ["--ckpt_path", str(tmp_path / "last.ckpt"), "--output", str(tmp_path / "command")]
    assert main(["export", *words]) == 0
    expected = logits(module.network)
    assert (expected - start).abs().max() > 0.01
    for folder in (tmp_path / "callback", tmp_path / "command"):
        plain = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        assert not [name for name, _ in plain.named_parameters() if "lora" in name or "base_layer" in name]
        torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-5)
    assert module.network.get_parameter("model.layers.0.self_attn.q_proj.lora_A.default.weight").requires_grad


def test_a_checkpoint_is_evaluated_and_predicts(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = with_adapters(llama)
    trained(module, tmp_path, max_steps=16).save_checkpoint(tmp_path / "last.ckpt")
    loaded = CausalLM.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu")
    assert torch.equal(logits(loaded.network), logits(module.network))
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "abcdefgh" * 3} for _ in range(4)])
    batch = {"input_ids": IDS[:2], "attention_mask": torch.ones_like(IDS[:2]), "labels": IDS[:2]}
    assert len(loaded.predict_step(batch, 0)) == 2
    words = ["--ckpt_path", str(tmp_path / "last.ckpt"), "--data.source", str(rows), "--data.sequence_length", "16"]
    assert main(["evaluate", *words, "--accelerator", "cpu"]) == 0
    assert "test_loss" in capsys.readouterr().out


def test_a_resumed_run_gives_the_bits_of_one_never_stopped(llama: Path, tmp_path: Path) -> None:
    whole = with_adapters(llama)
    trained(whole, tmp_path, blocks="layers", max_steps=8)

    class SaveAt4(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    trained(with_adapters(llama), tmp_path, SaveAt4(), blocks="layers", max_steps=6)
    resumed = with_adapters(llama)
    trained(resumed, tmp_path, blocks="layers", max_steps=8, ckpt_path=str(tmp_path / "half.ckpt"))
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_rank": -1}, "lora_rank must be a whole number >= 0"),
        ({"lora_alpha": 0}, "lora_alpha must be a finite number > 0"),
        ({"lora_targets": []}, "lora_targets names no layers"),
        ({"lora_targets": ["q_prj"]}, r"q_prj.* not found in the base model; say 'all-linear' or .*'q_proj'"),
        ({"lora_targets": r".*layernorm"}, "does not fit the model: .* not supported"),
    ],
)
def test_options_that_cannot_be_are_refused(llama: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        with_adapters(llama, **options)


def test_a_head_that_shares_its_weights_gets_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="lm_head, whose weights another layer shares"):
        with_adapters(save_tiny_llama(tmp_path), lora_targets=["lm_head"])


def test_a_plan_counts_the_adapters_alone(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numel = 2 * RANK * (2 * 32 + 2 * 24 + 3 * 48)
    words = ["--model", str(llama), "--rate", "100mbit", "--step_s", "1", "--lora_rank", str(RANK)]
    assert main(["plan", *words]) == 0
    printed = capsys.readouterr().out
    assert f"2 blocks, {numel:,} parameters" in printed and f"LoRA of rank {RANK}" in printed
