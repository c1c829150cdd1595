from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models import CausalLM
from lightning_parablock.models.metrics import TokenLoss, token_losses
from tests.unit.tiny_text import byte_tokenizer, save_tiny_llama, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"), attention_dropout=0.1)


@pytest.fixture
def data(tmp_path: Path) -> FederatedTextDataModule:
    rows = [{"q": f"{i}+{i}=", "a": str(2 * i)} for i in range(24)]
    source = str(write_jsonl(tmp_path / "sums.jsonl", rows))
    return FederatedTextDataModule(
        source, template="{q}", answer_field="a", sequence_length=12, batch_size=4, val_batch_size=3, val_fraction=0.2
    )


def trainer(tmp_path: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", devices=1, default_root_dir=tmp_path, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **options,
    )  # fmt: skip


def batch(n: int = 2, size: int = 6) -> dict[str, Tensor]:
    ids = torch.randint(0, 256, (n, size), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :2] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def answers() -> dict[str, Tensor]:
    """Two examples whose labels begin and end at other places."""
    ids = batch()["input_ids"]
    labels = ids.clone()
    labels[0, :3] = labels[0, 5:] = labels[1, :2] = labels[1, 4:] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("one", [batch(), answers()], ids=["every token", "answers"])
def test_the_loss_and_its_gradient_are_transformers_own(folder: Path, one: dict[str, Tensor]) -> None:
    module, theirs = CausalLM(str(folder)).eval(), CausalLM(str(folder)).eval()
    loss, their_loss = module.mean_loss(one), theirs.network(**one).loss
    torch.testing.assert_close(loss, their_loss)
    loss.backward()
    their_loss.backward()
    for mine, their in zip(module.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, their.grad)


def test_logits_are_made_only_where_something_is_predicted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, shapes = CausalLM(str(folder)).eval(), list[torch.Size]()
    module.network.lm_head.register_forward_hook(lambda _, __, logits: shapes.append(logits.shape))
    sums, counts = module.losses(answers())
    assert shapes == [
        (2, 3, module.network.config.vocab_size)
    ]  # before the tokens at 3, 4 of one and 2, 3 of the other
    assert counts.tolist() == [2, 2]
    monkeypatch.setattr(module, "_cuts_logits", False)  # as of an architecture whose forward has no such option
    torch.testing.assert_close(module.losses(answers()), (sums, counts))
    assert shapes[1][1] == 6


def test_an_impossible_token_gives_a_finite_loss() -> None:
    sums, counts = token_losses(torch.tensor([[[0.0, -500.0]]]), torch.tensor([[1]]))
    assert (sums.tolist(), counts.tolist()) == ([500.0], [1])


def test_metric_weighs_every_token_the_same_over_batches_and_modes() -> None:
    metric = TokenLoss()
    with torch.inference_mode():
        metric.update(torch.tensor(10.0), torch.tensor(2))
    metric.update(torch.tensor(2.0), torch.tensor(4))
    assert metric.compute().item() == 2.0


def test_metric_weighs_every_token_the_same_over_ranks() -> None:
    def gather(mine: Tensor, group: object) -> list[Tensor]:
        other = torch.tensor(1) if mine.dtype == torch.long else torch.tensor(9.0, dtype=mine.dtype)
        return [mine, other]

    metric = TokenLoss(dist_sync_fn=gather, distributed_available_fn=lambda: True)
    metric.update(torch.tensor(3.0), torch.tensor(3))
    assert metric.compute().item() == 3.0  # (3 + 9) nats over 3 + 1 tokens; a mean of the ranks' means would say 5


def test_weights_are_float32_in_training_mode_without_cache(folder: Path) -> None:
    module = CausalLM(str(folder))
    assert module.network.training
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert module.tokenizer("hi")["input_ids"] == byte_tokenizer()("hi")["input_ids"]


def test_weights_are_loaded_in_bfloat16_where_that_is_asked_for(folder: Path) -> None:
    exact, half = CausalLM(str(folder)), CausalLM(str(folder), dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    for one, other in zip(exact.parameters(), half.parameters(), strict=True):
        assert torch.equal(one.to(torch.bfloat16), other)
    drawn = CausalLM(str(folder), dtype="bfloat16", random_weights=True)
    assert {parameter.dtype for parameter in drawn.parameters()} == {torch.bfloat16}
    with pytest.raises(ConfigurationError, match="dtype='float16' is not known; choose from float32, bfloat16"):
        CausalLM(str(folder), dtype="float16")  # type: ignore[arg-type]


def test_trains_validates_tests_and_predicts(folder: Path, data: FederatedTextDataModule, tmp_path: Path) -> None:
    module = CausalLM(str(folder), learning_rate=1e-2, predict_tokens=3)
    runs = trainer(tmp_path, max_steps=20, num_sanity_val_steps=1)
    before = runs.validate(module, data, verbose=False)[0]
    runs.fit(module, data)
    after = runs.validate(module, data, verbose=False)[0]
    assert after["val_loss"] < before["val_loss"] - 0.5
    assert after["val_perplexity"] == pytest.approx(math.exp(after["val_loss"]), rel=1e-5)
    tested = runs.test(module, data, verbose=False)[0]
    assert tested["test_loss"] == after["val_loss"]  # without test_source the held-out rows serve
    completed: Any = runs.predict(module, data)
    first = completed[0][0]
    assert first["prompt"].endswith("=") and set(first) == {"prompt", "completion"}


def test_every_epoch_has_an_order_of_its_own(folder: Path, data: FederatedTextDataModule, tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
            seen.append(batch["input_ids"])

    module = CausalLM(str(folder))
    trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[Watch()]).fit(module, data)
    loader = data.train_dataloader()
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        expected = [item["input_ids"] for item in loader]
        trained = seen[epoch * len(loader) : (epoch + 1) * len(loader)]
        assert all(torch.equal(a, b) for a, b in zip(trained, expected, strict=True))
    assert not torch.equal(torch.cat(seen[: len(loader)]), torch.cat(seen[len(loader) :]))


def test_val_loss_is_the_mean_over_tokens_not_over_batches(
    folder: Path, data: FederatedTextDataModule, tmp_path: Path
) -> None:
    module = CausalLM(str(folder))
    logged = trainer(tmp_path).validate(module, data, verbose=False)[0]["val_loss"]
    total, count = 0.0, 0
    module.eval()
    for item in data.val_dataloader():
        logits = module(item["input_ids"], item["attention_mask"]).detach()
        total += float(
            functional.cross_entropy(logits[:, :-1].flatten(0, 1), item["labels"][:, 1:].flatten(), reduction="sum")
        )
        count += int((item["labels"][:, 1:] != -100).sum())
    assert logged == pytest.approx(total / count, rel=1e-6)


def test_a_batch_without_labels_gives_zero_and_no_nan(folder: Path) -> None:
    module = CausalLM(str(folder))
    empty = {**batch(), "labels": torch.full((2, 6), -100)}
    loss = module.mean_loss(empty)
    loss.backward()
    assert loss.item() == 0.0
    assert all(not parameter.grad.any() for parameter in module.parameters())


def test_a_checkpoint_loads_where_the_pretrained_weights_are_gone(
    data: FederatedTextDataModule, tmp_path: Path
) -> None:
    home = save_tiny_llama(tmp_path / "model")
    module = CausalLM(str(home), layers=1, learning_rate=3e-3)
    runs = trainer(tmp_path, max_steps=1)
    runs.fit(module, data)
    runs.save_checkpoint(tmp_path / "one.ckpt")
    home.rename(tmp_path / "moved")
    loaded = CausalLM.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), loaded.parameters(), strict=True))
    assert loaded.configure_optimizers().param_groups[0]["lr"] == 3e-3
    assert loaded.network.config.num_hidden_layers == 1
    assert str(tmp_path) not in torch.load(tmp_path / "one.ckpt", weights_only=True)["hyper_parameters"]["architecture"]


def test_weight_decay_spares_vectors(folder: Path) -> None:
    module = CausalLM(str(folder), weight_decay=0.1, adam_epsilon=1e-3, adam_betas=(0.5, 0.9))
    matrices, vectors = module.configure_optimizers().param_groups
    assert {p.dim() for p in matrices["params"]} == {2} and {p.dim() for p in vectors["params"]} == {1}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert (matrices["eps"], matrices["betas"]) == (1e-3, (0.5, 0.9))
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(module.parameters()))


def test_random_weights_have_the_shape_and_nothing_else(folder: Path) -> None:
    loaded, drawn = CausalLM(str(folder)), CausalLM(str(folder), random_weights=True)
    pairs = list(zip(loaded.parameters(), drawn.parameters(), strict=True))
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_activation_checkpointing_gives_the_same_gradients_and_stops_at_the_frozen_layers(folder: Path) -> None:
    gradients: list[dict[str, Tensor]] = []
    forwards: list[int] = []
    for checkpointing in (False, True):
        module = CausalLM(str(folder), activation_checkpointing=checkpointing).eval()
        module.network.train(checkpointing)  # checkpointing works in training mode only
        for layer in module.network.model.layers:
            layer.self_attn.attention_dropout = 0.0
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("layers.1." in name)
        calls: list[int] = []
        module.network.model.layers[0].mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        module.losses(batch())[0].sum().backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
        forwards.append(len(calls))
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])
    assert forwards == [1, 1]  # the frozen layer below is not computed again


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": 0}, "layers must be a whole number >= 1"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0"),
        ({"adam_betas": (0.9, 1.0)}, "adam_betas must be two numbers"),
        ({"adam_epsilon": 0.0}, "adam_epsilon must be > 0"),
        ({"predict_tokens": 0}, "predict_tokens must be >= 1"),
        ({"architecture": '{"model_type": "lama"}'}, "architecture is no transformers configuration"),
        ({"architecture": "lama"}, "architecture is no transformers configuration"),
    ],
)
def test_wrong_options_fail_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        CausalLM("owner/never-asked-for", **options)


def test_a_model_without_trainable_parameters_is_an_error(folder: Path) -> None:
    module = CausalLM(str(folder)).requires_grad_(False)
    with pytest.raises(ConfigurationError, match="no trainable parameter"):
        module.configure_optimizers()


def test_every_option_has_a_help_text() -> None:
    names = set(inspect.signature(CausalLM.__init__).parameters) - {"self"}
    documented = inspect.getdoc(CausalLM) or ""
    assert [name for name in sorted(names) if f"    {name}: " not in documented] == []
