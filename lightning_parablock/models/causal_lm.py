"""A LightningModule over transformers' causal language models."""

from __future__ import annotations

import inspect
import json
from typing import Any, cast, get_args

import lightning.pytorch as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models.loading import (
    load_config,
    load_model,
    load_tokenizer,
    network_of_architecture,
    random_model,
    resolve_model,
)
from lightning_parablock.models.lora import Adapters, add_adapters
from lightning_parablock.models.metrics import TokenLoss, TokenPerplexity, token_losses
from lightning_parablock.models.names import ALL_LINEAR, IGNORED_LABEL, Dtype

Batch = dict[str, Tensor]
_NOT_KEPT = ("_name_or_path", "id2label", "label2id")


class CausalLM(pl.LightningModule):
    """Fine-tunes a causal language model with AdamW.

    Takes batches of ``input_ids``, ``attention_mask`` and ``labels``, each (batch, sequence) torch.long, with labels
    -100 where nothing is to be predicted. Logs ``train_loss``, ``val_loss``, ``test_loss`` (mean cross entropy per
    predicted token, in nats) and ``val_perplexity``, ``test_perplexity``. Predict greedily completes the unlabelled
    beginning of each example (the prompt; for plain text the first half) and returns dicts of ``prompt`` and
    ``completion``.

    Args:
        model: Hub id, local folder, ``.gguf`` file, or ``package:NAME`` for the GGUF file inside an installed package.
        gguf_file: Name of the GGUF file in a folder or hub repository that has several, or other weights too.
        layers: Number of layers to keep, from the first one; None keeps all.
        learning_rate: Step size of AdamW, dimensionless.
        weight_decay: Decoupled weight decay of matrices, dimensionless; vectors (norms, biases) are never decayed.
        adam_betas: Decay rates of AdamW's first and second moment, each in [0, 1).
        adam_epsilon: Term added to AdamW's denominator, dimensionless.
        activation_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        dtype: Type of the weights, "float32" or, with precision="bf16-true", "bfloat16": then they never take more than
            two bytes each.
        random_weights: Draw the weights at random instead of loading them; for benchmarks of shapes.
        predict_tokens: Maximum number of tokens that predict adds to each prompt.
        lora_rank: Rank of LoRA adapters (arXiv 2106.09685), made by peft; with them everything else is frozen, and they
            alone form blocks and are sent. 0 for none.
        lora_alpha: Adapters are scaled by lora_alpha / lora_rank, dimensionless; None is twice the rank.
        lora_targets: Layers with adapters: "all-linear" (every linear layer but the head), a list of the last parts of
            their names such as [q_proj, v_proj], or one regular expression for whole names; as in peft.
        architecture: transformers' configuration, as JSON text, to build without pretrained weights. Checkpoints carry
            it, so that they can be loaded where the pretrained weights are not available.

    Raises:
        ConfigurationError: the model cannot be found, read or built, or an option is out of its range.
    """

    def __init__(
        self,
        model: str,
        *,
        gguf_file: str | None = None,
        layers: int | None = None,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.0,
        adam_betas: tuple[float, float] = (0.9, 0.999),
        adam_epsilon: float = 1e-8,
        activation_checkpointing: bool = False,
        dtype: Dtype = "float32",
        random_weights: bool = False,
        predict_tokens: int = 32,
        lora_rank: int = 0,
        lora_alpha: float | None = None,
        lora_targets: str | list[str] = ALL_LINEAR,
        architecture: str | None = None,
    ) -> None:
        super().__init__()
        _check_options(layers, learning_rate, weight_decay, adam_betas, adam_epsilon, predict_tokens)
        if dtype not in get_args(Dtype):
            raise ConfigurationError(f"dtype={dtype!r} is not known; choose from {', '.join(get_args(Dtype))}")
        adapters = Adapters(lora_rank, lora_alpha, lora_targets)
        self.save_hyperparameters()
        self._source = (model, gguf_file)
        self._adamw: dict[str, Any] = {"lr": learning_rate, "betas": tuple(adam_betas), "eps": adam_epsilon}
        self._weight_decay, self._predict_tokens = weight_decay, predict_tokens
        self._tokenizer: Any = None
        self._location: str | None = None
        self.network = self._build(layers, random_weights, architecture, dtype)
        add_adapters(self.network, adapters)
        # a few architectures of transformers have no such option
        self._cuts_logits = "logits_to_keep" in inspect.signature(self.network.forward).parameters
        # from_pretrained leaves a model in eval mode and Lightning keeps that mode: dropout would stay off
        self.network.train()
        if activation_checkpointing:
            _enable_activation_checkpointing(self.network)
        self.val_metrics = torch.nn.ModuleDict({"loss": TokenLoss(), "perplexity": TokenPerplexity()})
        self.test_metrics = torch.nn.ModuleDict({"loss": TokenLoss(), "perplexity": TokenPerplexity()})

    @property
    def tokenizer(self) -> Any:
        """The model's transformers tokenizer, loaded at first use.

        Raises:
            ConfigurationError: the model has none, or can no longer be found.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._resolve())
        return self._tokenizer

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits, (batch, sequence, vocabulary), for token ids, (batch, sequence)."""
        return self.network(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each example's summed loss, in nats, and its number of predicted tokens; two tensors of shape (batch,).

        Logits, the largest tensor of a model with a large vocabulary, are computed only at positions where some example
        of the batch has a next token to predict.
        """
        targets = batch["labels"][:, 1:]
        positions = (targets != IGNORED_LABEL).any(dim=0).nonzero().squeeze(1)
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        if self._cuts_logits:
            logits = self.network(**inputs, use_cache=False, logits_to_keep=positions).logits
        else:
            logits = self(**inputs)[:, positions]
        return token_losses(logits, targets[:, positions])

    def mean_loss(self, batch: Batch) -> Tensor:
        """Mean loss per predicted token of the batch, in nats, a scalar; 0 where nothing is to be predicted."""
        sums, counts = self.losses(batch)
        return sums.sum() / counts.sum().clamp(min=1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss per predicted token of the batch, in nats: the scalar to minimise."""
        loss = self.mean_loss(batch)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch["input_ids"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor] | None:
        """Add the batch to ``val_loss`` and ``val_perplexity``, means over all tokens of all clients.

        With several loaders only the first one counts for these. Returns each example's loss for
        :class:`~lightning_parablock.callbacks.ClientSight`.
        """
        sums, counts = self.losses(batch)
        if dataloader_idx == 0:
            self._note("val", self.val_metrics, sums, counts)
        return {"loss_sums": sums, "loss_counts": counts}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the batch to ``test_loss`` and ``test_perplexity``, means over all tokens of all clients."""
        self._note("test", self.test_metrics, *self.losses(batch))

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, str]]:
        """Greedy completions, one dict per example with the texts ``prompt`` and ``completion``."""
        rows = zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
        return [self._complete(ids[: _prompt_length(mask, labels)]) for ids, mask, labels in rows]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over all trainable parameters; vectors are in a group without weight decay."""
        trainable = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        if not trainable:
            raise ConfigurationError("the model has no trainable parameter; every one has requires_grad=False")
        matrices = {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": self._weight_decay}
        vectors = {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0}
        return torch.optim.AdamW([group for group in (matrices, vectors) if group["params"]], **self._adamw)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the architecture to the checkpoint's hyperparameters; see the option ``architecture``."""
        hyperparameters = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY)
        if hyperparameters is not None:
            checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = {**hyperparameters, "architecture": self._architecture()}

    def _build(
        self, layers: int | None, random_weights: bool, architecture: str | None, dtype: Dtype
    ) -> PreTrainedModel:
        if architecture is not None:
            return network_of_architecture(architecture, layers, dtype)
        location = self._resolve()
        config = load_config(location, layers)
        return random_model(config, dtype) if random_weights else load_model(location, config, dtype)

    def _architecture(self) -> str:
        """The configuration as JSON text: LightningCLI, which reads it back, would take a dict apart."""
        config: dict[str, Any] = json.loads(self.network.config.to_json_string(use_diff=False))
        # a path on this machine, and the labels of a classifier: useless when the checkpoint is loaded elsewhere
        return json.dumps({name: value for name, value in config.items() if name not in _NOT_KEPT})

    def _resolve(self) -> str:
        if self._location is None:
            self._location = resolve_model(*self._source)
        return self._location

    def _note(self, stage: str, metrics: torch.nn.ModuleDict, sums: Tensor, counts: Tensor) -> None:
        for name, metric in metrics.items():
            cast(TokenLoss, metric).update(sums.sum(), counts.sum())
            self.log(
                f"{stage}_{name}",
                cast(TokenLoss, metric),
                on_step=False,
                on_epoch=True,
                prog_bar=name == "loss",
                add_dataloader_idx=False,
            )

    def _complete(self, prompt: Tensor) -> dict[str, str]:
        generate = cast(Any, self.network).generate
        ids = generate(
            prompt.unsqueeze(0),
            attention_mask=torch.ones_like(prompt).unsqueeze(0),
            max_new_tokens=self._predict_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
        )[0]
        decode = self.tokenizer.decode
        return {"prompt": decode(prompt), "completion": decode(ids[len(prompt) :], skip_special_tokens=True)}


def _prompt_length(mask: Tensor, labels: Tensor) -> int:
    """Number of tokens before the first label; half of the tokens where everything is labelled."""
    first = int((labels != IGNORED_LABEL).int().argmax())
    return first or max(int(mask.sum()) // 2, 1)


def _enable_activation_checkpointing(network: PreTrainedModel) -> None:
    cast(Any, network).activation_checkpointing_enable({"use_reentrant": False})
    # Activation checkpointing makes the embedding's output require a gradient: backward would run through every frozen
    # layer down to it.
    network.disable_input_require_grads()


def _check_options(
    layers: int | None, learning_rate: float, weight_decay: float, betas: Any, epsilon: float, predict_tokens: int
) -> None:
    problems = {
        f"layers must be a whole number >= 1, got {layers!r}": layers is None or layers >= 1,
        f"learning_rate must be > 0, got {learning_rate}": learning_rate > 0,
        f"weight_decay must be >= 0, got {weight_decay}": weight_decay >= 0,
        f"adam_betas must be two numbers in [0, 1), got {betas}": len(betas) == 2 and all(0 <= b < 1 for b in betas),
        f"adam_epsilon must be > 0, got {epsilon}": epsilon > 0,
        f"predict_tokens must be >= 1, got {predict_tokens}": predict_tokens >= 1,
    }
    for message, fine in problems.items():
        if not fine:
            raise ConfigurationError(message)
