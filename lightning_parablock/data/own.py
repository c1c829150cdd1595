"""The rows that clients hold out for their own validation, one client's after the other's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch.utils.data import ConcatDataset

from lightning_parablock.data.tokenize import TokenExamples


class OwnExamples(ConcatDataset[dict[str, Any]]):
    """The own validation examples of the clients that a rank hosts.

    Args:
        examples: By client.

    Attributes:
        row_clients: For each example the number of its client.
    """

    def __init__(self, examples: Mapping[int, TokenExamples]) -> None:
        super().__init__(list(examples.values()))
        self.row_clients = [client for client, own in examples.items() for _ in range(len(own))]
        self._hashes = [own.sha256 for own in examples.values()]

    @property
    def sha256(self) -> str:
        """Hash of all examples, as hexadecimal digits."""
        return hashlib.sha256("".join(self._hashes).encode()).hexdigest()
