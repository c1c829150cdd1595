"""What a client brings to an exchange."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_parablock.codecs.feedback import Coder, Residual


@dataclass(frozen=True)
class Upload:
    """One client's contribution to an exchange.

    Attributes:
        delta: Shape (numel of the block,), float32; neither the caller nor the transport changes it after submission.
        weight: n_i of the mean: 1 for uniform weighting, else the samples of the round; 0 for a client that did not
            train or whose delta was not finite.
        residual: What a lossy codec left out before and will leave out now; None where it leaves nothing out.
        gradient_norm: Gradient norm of the block at the client's first local step; 0 where no block order needs it.
    """

    delta: Tensor
    weight: int = 1
    residual: Residual | None = None
    gradient_norm: float = 0.0

    def write(self, part: slice, payload: Tensor, coder: Coder) -> None:
        """Encode a part of the delta; see :class:`~lightning_parablock.server.aggregation.Contribution`."""
        coder.encode_delta(self.delta, self.residual, part, payload)

    def here(self, part: slice, coder: Coder) -> Tensor:
        """A part of the delta as a server on this rank gets it: the same bits as from a message, on the host."""
        return coder.as_received(self.delta, self.residual, part)
