"""What a site sends: the whole numbers of its clients, added up and masked. Nothing else of a delta leaves it."""

from __future__ import annotations

import logging
import threading
from typing import Protocol

import torch
from torch import Tensor

from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.masking.agreement import Lane
from lightning_parablock.masking.quantize import quantize
from lightning_parablock.masking.ring import Ring
from lightning_parablock.masking.scales import PIECE_SCALARS, log_scales
from lightning_parablock.server.aggregation import Uploads
from lightning_parablock.server.secure.exchange import SecureExchange
from lightning_parablock.server.secure.layout import A_SITE, N_COUNTS, Layout, layout_of, records_of
from lightning_parablock.server.uploads import Upload

log = logging.getLogger(__name__)

FACTS = Ring(4)
MOST_SATURATED = 0.05
MOST_RESIDUAL = 0.5


class Masking(Protocol):
    """What hides a site's numbers: :class:`~lightning_parablock.masking.masks.Masks`."""

    min_sites: int

    def apply(
        self, values: Tensor, round_index: int, block: int, lane: Lane, first: int, among: tuple[str, ...] | None
    ) -> None:
        """Mask values in place."""
        ...

    def prepare(
        self,
        round_index: int,
        block: int,
        lane: Lane,
        n_values: int,
        bytes_per_value: int,
        among: tuple[str, ...] | None,
    ) -> None:
        """Compute masks ahead."""
        ...

    def close_rounds(self, before: int) -> None:
        """Forget the exchanges of earlier rounds."""
        ...


class SiteValues:
    """The part of one site in one exchange; its methods are called on two threads.

    Args:
        exchange: Which one.
        uploads: Those of the site's clients.
        masks: Hides them.

    Raises:
        TooFewSitesError: none of the clients has trained, and without this site too few are left in the sum.
    """

    def __init__(self, exchange: SecureExchange, uploads: Uploads, masks: Masking) -> None:
        self.exchange, self._masks = exchange, masks
        self._uploads = [upload for _, upload in sorted(uploads.items()) if upload.weight]
        if not self._uploads:
            exchange.refuse_to_sit_out()
        self._logs: Tensor | None = None
        self._lock = threading.Lock()
        self._written = self._saturated = 0
        self._left = self._wanted = 0.0

    def write_values(self, part: slice, into: Tensor) -> None:
        """The masked sum of the clients' numbers.

        Args:
            part: Scalars of the block.
            into: Shape (scalars,), of the ring's type; overwritten.
        """
        exchange = self.exchange
        into.zero_()
        numbers = torch.empty_like(into)
        for upload in self._uploads:
            assert upload.residual is not None, "secure sums leave a residual"
            left = self._wanted_of(upload, part, upload.residual.after[part])
            steps = exchange.steps_of(part)
            with exchange.named(part):
                saturated = quantize(left, steps, exchange.limit, numbers)
            exchange.ring.add(into, numbers)
            self._note(upload, part, saturated, left)
        self._masks.apply(into, *exchange.key, "values", part.start, exchange.sites)
        self._note_written(part)

    def write_facts(self, part: slice, into: Tensor) -> None:
        """The masked facts of the clients.

        Args:
            part: Scalars of the block.
            into: Shape (n_records + 2,), int32; overwritten.
        """
        records, exchange = records_of(part), self.exchange
        scales, counts = into[:-N_COUNTS], into[-N_COUNTS:]
        scales.copy_(self._sum_of_logs()[records])
        counts[0] = sum(upload.weight for upload in self._uploads)
        counts[1] = len(self._uploads) + (A_SITE if self._uploads else 0)
        self._masks.apply(scales, *exchange.key, "scales", records.start, exchange.sites)
        # Each part has words of its own in this lane, too: equal numbers are never masked by the same bytes.
        self._masks.apply(counts, *exchange.key, "weights", N_COUNTS * records.start, exchange.sites)

    def _sum_of_logs(self) -> Tensor:
        with self._lock:
            if self._logs is None:
                self._logs = self._make_logs()
            return self._logs

    def _make_logs(self) -> Tensor:
        whole = slice(0, self.exchange.numel)
        total = torch.zeros(records_of(whole).stop, dtype=torch.int32, device="cpu")
        values = torch.empty(min(whole.stop, PIECE_SCALARS), dtype=torch.float32, device="cpu")
        pieces = [slice(start, min(start + PIECE_SCALARS, whole.stop)) for start in range(0, whole.stop, PIECE_SCALARS)]
        for upload in self._uploads:
            wanted = (self._wanted_of(upload, piece, values[: piece.stop - piece.start]) for piece in pieces)
            with self.exchange.named(whole):
                FACTS.add(total, log_scales(wanted))
        return total

    def _wanted_of(self, upload: Upload, part: slice, into: Tensor) -> Tensor:
        """u = n_i Delta_i + e, written into a tensor of the part's shape on the host."""
        delta = upload.delta[part].to(into.device)
        if upload.weight != 1:
            delta = torch.mul(delta, upload.weight, out=into)
        if upload.residual is not None and upload.residual.before is not None:
            return torch.add(delta, upload.residual.before[part], out=into)
        return delta if delta is into else into.copy_(delta)

    def _note(self, upload: Upload, part: slice, saturated: int, left: Tensor) -> None:
        delta = upload.delta[part]
        squares = float(torch.dot(left, left)), float(torch.dot(delta, delta)) * upload.weight**2
        with self._lock:
            self._saturated += saturated
            self._left += squares[0]
            self._wanted += squares[1]

    def _note_written(self, part: slice) -> None:
        with self._lock:
            self._written += part.stop - part.start
            is_whole = self._written == self.exchange.numel
        if is_whole:
            self._warn()

    def _warn(self) -> None:
        where = f"round {self.exchange.key[0]}, block {self.exchange.key[1]}"
        values = self.exchange.numel * len(self._uploads)
        if self._saturated > MOST_SATURATED * values:
            log.warning(
                "parablock: %s: %.0f %% of this site's values are larger than the secure sum can hold, and wait in the "
                "residual; take bytes_per_value=2, or a smaller learning rate",
                where,
                100 * self._saturated / values,
            )
        if self._left > MOST_RESIDUAL**2 * self._wanted > 0:
            log.warning(
                "parablock: %s: what the secure sum leaves out of this site's deltas is %.0f %% of them; take "
                "bytes_per_value=2, or fewer clients per round",
                where,
                100 * (self._left / self._wanted) ** 0.5,
            )


class SitePayload:
    """A site's contribution as one message per part: its values, its facts, or both.

    Attributes:
        weight: Not said openly.
        gradient_norm: Not said openly.
    """

    weight = 0
    gradient_norm = 0.0

    def __init__(self, site: SiteValues, *, has_values: bool, has_facts: bool) -> None:
        self._site, self._has_values, self._has_facts = site, has_values, has_facts

    def write(self, part: slice, payload: Tensor, coder: Coder) -> None:
        """See :class:`~lightning_parablock.server.aggregation.Contribution`."""
        layout = self._layout(part)
        layout.fill_up(payload)
        if self._has_values:
            self._site.write_values(part, self._site.exchange.ring.signed(layout.body(payload)))
        if self._has_facts:
            self._site.write_facts(part, layout.facts(payload))

    def here(self, part: slice, coder: Coder) -> Tensor:
        """The same bytes, for a server on this rank."""
        payload = torch.empty(self._layout(part).size_bytes, dtype=torch.uint8, device="cpu")
        self.write(part, payload, coder)
        return payload

    def _layout(self, part: slice) -> Layout:
        scalars = part.stop - part.start
        body_bytes = self._site.exchange.ring.bytes_per_value * scalars if self._has_values else 0
        return layout_of(body_bytes, scalars, has_facts=self._has_facts)
