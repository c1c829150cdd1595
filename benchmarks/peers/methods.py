"""What is compared: the methods, their learning rates, and the size of the runs.

Every federated method runs rounds of local steps; a round of DDP is one step. Whole-model peers get rounds twice as
long as block methods and LoRA, since they send five times the bytes per round; Streaming DiLoCo sends each of its
fragments as often as DiLoCo sends the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

N_CLIENTS = 2
BATCH_SIZE = 1
SEQUENCE_LENGTH = 128
LINKS = ("1gbit", "100mbit", "20mbit")
LORA_RANK = 16

Kind = Literal["ddp", "strategy", "lora", "diloco"]


@dataclass(frozen=True)
class Timing:
    """How much of a method is timed on each link.

    Attributes:
        rounds: Rounds on each of LINKS; 0 if it is not timed there.
        untimed_rounds: Number of these to skip at the start, where nothing is in flight yet.
        local_steps: Steps per timed round. Methods whose exchange overlaps with no step can be timed with fewer than in
            training; the missing ones are added afterwards. None: as in training.
    """

    rounds: tuple[int, int, int]
    untimed_rounds: int = 0
    local_steps: int | None = None


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        title: Name shown in the table.
        kind: The program that runs it.
        timing: What is timed.
        learning_rates: AdamW's learning rates to try on one seed; the best final loss represents the method.
        long_rounds: Whether it has the longer rounds of whole-model methods.
        options: Options of ParaBlockStrategy or torchft's DiLoCo.
        extra: Whether it is skipped unless named on the command line.
    """

    title: str
    kind: Kind
    timing: Timing
    learning_rates: tuple[float, ...]
    long_rounds: bool = False
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extra: bool = False

    @property
    def overlaps(self) -> bool:
        """Whether training ends with an exchange in flight, which is drained."""
        return self.kind in ("strategy", "lora") and "delay_steps" not in self.options


WHOLE_RATES = (1e-4, 2e-4)
BLOCK_RATES = (3e-4, 1e-4, 6e-4)
ADAPTER_RATES = (1e-3, 5e-4, 2e-3)
BLOCKING_WHOLE = Timing((1, 1, 1), local_steps=3)
PARABLOCK = Timing((4, 4, 3), untimed_rounds=1)
COMPRESSED = Timing((0, 4, 3), untimed_rounds=1)

METHODS = {
    "parablock": Method("ParaBlock", "strategy", PARABLOCK, BLOCK_RATES),
    "fedbcd": Method("FedBCD", "strategy", Timing((5, 5, 2), local_steps=3), BLOCK_RATES, options={"delay_steps": 0}),
    "fedavg": Method("FedAvg", "strategy", BLOCKING_WHOLE, WHOLE_RATES, True, {"blocks": 1, "delay_steps": 0}),
    "lora": Method("LoRA, FedAvg of adapters", "lora", Timing((2, 2, 2)), ADAPTER_RATES, options={"delay_steps": 0}),
    "lora_parablock": Method("ParaBlock over LoRA", "lora", Timing((3, 3, 3), untimed_rounds=1), ADAPTER_RATES[:1]),
    "diloco": Method("DiLoCo (torchft)", "diloco", BLOCKING_WHOLE, WHOLE_RATES, True, {"streaming": False}),
    "streaming_diloco": Method(
        "Streaming DiLoCo (torchft)", "diloco", Timing((2, 2, 2)), WHOLE_RATES, options={"streaming": True}
    ),
    "ddp": Method("Lightning DDP", "ddp", Timing((3, 1, 1)), WHOLE_RATES),
    "parablock_int8": Method(
        "ParaBlock, int8", "strategy", COMPRESSED, BLOCK_RATES[:1], options={"compression": "int8"}
    ),
    "parablock_int4": Method(
        "ParaBlock, int4", "strategy", COMPRESSED, BLOCK_RATES[:1], options={"compression": "int4"}
    ),
    "one_block_int4": Method(
        "ParaBlock, one block of all, int4",
        "strategy",
        Timing((0, 2, 2), untimed_rounds=1),
        WHOLE_RATES[:1],
        True,
        {"blocks": 1, "compression": "int4"},
        extra=True,
    ),
}


@dataclass(frozen=True)
class Size:
    """The size of the runs.

    Attributes:
        layers: First layers of the model that are kept; None keeps all.
        blocks: Blocks of the block methods. Five: the embedding is as large as each fifth of the rest.
        fragments: Fragments of Streaming DiLoCo.
        steps: Optimizer steps per client in training.
        local_steps: Local steps per round of block methods and LoRA.
        long_steps: Local steps per round of whole-model methods, and between two turns of a fragment of Streaming
            DiLoCo.
        evaluate_every_steps: Steps between two held-out losses.
        val_examples: Held-out examples; each client evaluates half of them.
    """

    layers: int | None
    blocks: int
    fragments: int
    steps: int
    local_steps: int
    long_steps: int
    evaluate_every_steps: int
    val_examples: int


SIZES = {
    "whole": Size(None, 5, 4, 64, local_steps=8, long_steps=16, evaluate_every_steps=8, val_examples=32),
    "quick": Size(3, 3, 2, 8, local_steps=2, long_steps=8, evaluate_every_steps=4, val_examples=4),
}


def round_steps(method: Method, size: Size) -> int:
    """Optimizer steps from one exchange of a method to its next, in training."""
    if method.kind == "ddp":
        return 1
    if method.options.get("streaming"):
        return size.long_steps // size.fragments
    return size.long_steps if method.long_rounds else size.local_steps
