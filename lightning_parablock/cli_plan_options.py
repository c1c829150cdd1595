"""The options of ``lightning-parablock plan``: one frozen record, checked before a model is looked up."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch

from lightning_parablock.cli_probe import launched_ranks
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models.loading import Dtype
from lightning_parablock.models.lora import ALL_LINEAR, Adapters
from lightning_parablock.models.speed import Step
from lightning_parablock.planning.timing import NOMINAL_GOODPUT, Links
from lightning_parablock.planning.units import parse_bps, parse_flop_per_s
from lightning_parablock.settings import (
    BlockOrder,
    Settings,
    Unmatched,
    resolve_blocks,
    resolve_server_optimizer,
)


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What to plan for.

    Args:
        model: Hub id, folder, .gguf file, package:NAME, or a known shape: llama3-8b, llama3-70b. Only the configuration
            is read.
        gguf_file: Name of the GGUF file in a folder or hub id that holds several, or other weights too.
        layers: Keep only so many layers, the first ones; null keeps all.
        clients: Number of clients. Null: the processes that torchrun started, else 2.
        rate: Rate of a client's link each way, such as 100mbit or 1gbit, or bits a second. Needed unless --probe
            measures it between the processes that torchrun started.
        server_rate: The same of the client that serves a star. Null is rate.
        step_s: Seconds of one optimizer step of the slowest client, on an average block.
        probe: Measure steps on this machine for some 20 seconds, with random weights and as many layers as fit; under
            torchrun on the machines of all processes, and their links, too.
        flop_rate: Floating-point operations a second that a client reaches, such as 50gflops or 100tflops: where
            neither step_s nor probe is given, step times are an estimate from this.
        batch_size: Sequences an optimizer step and client.
        sequence_length: Tokens a sequence.
        dtype: Type of the weights. With bfloat16 the block in training has a float32 master copy.
        lora_rank: Rank of LoRA adapters; with them only the adapters are trained and sent. 0 for none; as in fit.
        lora_targets: Layers with adapters, as in fit.
        local_steps: Local steps a round (K) in the table; more are recommended only where no compression hides the
            exchange behind so many.
        blocks: How the model is cut: "layers", a number of blocks, or a list of regular expressions; as in fit.
        unmatched: What becomes of parameters that no pattern of blocks matches: "error" or "freeze".
        block_order: Which block each round trains: "sequential", "reverse", "shuffle" or "random".
        server_optimizer: "sgd" or "nesterov", which keeps a velocity in the server's memory.
        chunk_bytes: Float32 payload of one message, in bytes, a multiple of 4096.
        seed: Of the block order.
        output: File for the recommended settings, which fit takes with --config; null only prints them.
    """

    model: str
    gguf_file: str | None = None
    layers: int | None = None
    clients: int | None = None
    rate: str | None = None
    server_rate: str | None = None
    step_s: float | None = None
    probe: bool = False
    flop_rate: str = "100tflops"
    batch_size: int = 1
    sequence_length: int = 128
    dtype: Dtype = "float32"
    lora_rank: int = 0
    lora_targets: str | list[str] = ALL_LINEAR
    local_steps: int = 16
    blocks: Literal["layers"] | int | list[str] = "layers"
    unmatched: Unmatched = "error"
    block_order: BlockOrder = "shuffle"
    server_optimizer: Literal["sgd", "nesterov"] = "sgd"
    chunk_bytes: int = 1 << 20
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "clients", "batch_size", "sequence_length"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be a whole number >= 1, got {value}")
        _require(self.step_s is None or 0 < self.step_s < float("inf"), f"step_s must be > 0, got {self.step_s}")
        _require(not (self.probe and self.step_s), "step_s is given and probe would measure it; leave one out")
        measures_links = self.probe and launched_ranks() > 1
        _require(
            self.rate is not None or measures_links,
            "rate is missing: give --rate 100mbit, or start plan --probe under torchrun, which measures it",
        )
        _ = self.settings, self.adapters, self.n_clients, self.nominal_links  # checked before the model is looked up
        parse_flop_per_s("flop_rate", self.flop_rate)

    @property
    def settings(self) -> Settings:
        """The method's settings; topology and compression vary in the plan."""
        return Settings(
            local_steps=self.local_steps,
            delay_steps=self.local_steps,
            blocks=resolve_blocks(self.blocks),
            unmatched=self.unmatched,
            block_order=self.block_order,
            server_optimizer=resolve_server_optimizer(self.server_optimizer),
            chunk_bytes=self.chunk_bytes,
            seed=self.seed,
        )

    @property
    def adapters(self) -> Adapters:
        """Those that the model gets; none where the rank is 0."""
        return Adapters(self.lora_rank, targets=self.lora_targets)

    @property
    def n_clients(self) -> int:
        """How many clients there will be."""
        return self.clients or (launched_ranks() if launched_ranks() > 1 else 2)

    @property
    def step(self) -> Step:
        """What one local step trains on, on this machine."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return Step(self.batch_size, self.sequence_length, self.dtype, device, processes)

    @property
    def nominal_links(self) -> Links | None:
        """What payload gets of the rates that were given; None where they are to be measured."""
        if self.rate is None:
            return None
        client_bps = NOMINAL_GOODPUT * parse_bps("rate", self.rate)
        server_rate = self.server_rate if self.server_rate is not None else self.rate
        return Links(client_bps, NOMINAL_GOODPUT * parse_bps("server_rate", server_rate))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigurationError(message)
