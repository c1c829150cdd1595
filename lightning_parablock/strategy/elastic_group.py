"""The collectives of a run whose sites come and go: each is a numbered gather of one payload per site.

There is no default process group: sites that come and go cannot share one. These parts of Lightning 2.6 ask
``torch.distributed.is_initialized()``, and so behave as in a run of one process: ``_sync_ddp_if_available``,
``_all_gather_ddp_if_available`` and the barriers of Fabric, which only the methods of this group's strategy would call;
the broadcast of a flag at every batch and at SIGTERM, which this package replaces anyway; the choice between
``no_grad`` and ``inference_mode`` in evaluations; and the hint that an epoch's metric could be logged with
``sync_dist=True``. torchmetrics asks it, too: see :mod:`~lightning_parablock.strategy.elastic_metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.elastic.view import Entry, SiteView
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.strategy.groups import Group, Guarded, is_default, kind_of
from lightning_parablock.system.payloads import from_bytes, to_bytes
from lightning_parablock.system.reading import reading

T = TypeVar("T")
Payloads = Mapping[int, bytes]
"""One per client that takes part, by client id."""

PIECE_BYTES = 16 << 20
"""Longest payload of a collective that hands out weights."""

_REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "mean": torch.add,
    "min": torch.minimum,
    "max": torch.maximum,
    "product": torch.mul,
}


class Agreed:
    """What the founders of a run agreed on while they were set up: the results of their collectives, in order.

    A guest goes through the same set-up later, alone. Each of its collectives takes the founders' result, in which its
    own value is added, or takes the place of the one that its site had then.
    """

    def __init__(self, results: Sequence[tuple[str, Payloads]] = ()) -> None:
        self.results = list(results)

    def to_bytes(self) -> bytes:
        """For guests."""
        return to_bytes([(what, dict(payloads)) for what, payloads in self.results], "what the founders agreed on")

    @classmethod
    def from_bytes(cls, data: bytes) -> Agreed:
        """What :meth:`to_bytes` wrote; raises a ProtocolError for anything else."""
        results = from_bytes(data, "what the founders agreed on")
        with reading("what the founders agreed on"):
            for what, payloads in results:
                if type(what) is not str or {*map(type, payloads)} - {int} or {*map(type, payloads.values())} - {bytes}:
                    raise TypeError(f"{what!r:.40} is no result of a collective")
            return cls(results)


class ElasticGroup(Group):
    """The sites of a run.

    Args:
        ranks: The ranks of the group: this site's.
        site: This site.
        entry: How it has come into the run.

    Attributes:
        round: The round whose local steps have begun last, the first one before any has.
        agreed: What the founders agree on, as far as it is known.
    """

    def __init__(self, ranks: Guarded, site: SiteView, entry: Entry) -> None:
        self._ranks, self._site, self._entry = ranks, site, entry
        self.round = entry.first_round
        self.agreed = Agreed() if entry.is_founder else Agreed.from_bytes(entry.agreed)
        self._number = 0
        self._in_rounds = self._is_alone = False

    def __deepcopy__(self, memo: object) -> ElasticGroup:
        return self  # metrics are copied together with the method by which they gather

    # --- who takes part -----------------------------------------------------------------------------------------------

    @property
    def clients(self) -> tuple[int, ...]:
        """Client ids of those that take part in a collective now, ascending."""
        if self._is_alone:
            return (self._site.client,)
        if self._in_rounds or self._entry.is_founder:
            return self._site.present(self.round)
        return tuple(sorted({*self.founders, self._site.client}))

    @property
    def founders(self) -> tuple[int, ...]:
        """Client ids of those that founded the run, ascending."""
        return tuple(sorted(self.agreed.results[0][1] if self.agreed.results else self._entry.sites))

    @contextmanager
    def alone(self) -> Generator[None]:
        """Until the end of the block: collectives are this site's own, for its files, for example."""
        before, self._is_alone = self._is_alone, True
        try:
            yield
        finally:
            self._is_alone = before

    def begin_round(self, round_index: int) -> None:
        """The first local step of a round begins; collectives belong to that round from now on."""
        if not self._in_rounds:
            self._site.keep_agreed(self.agreed.to_bytes())
        self._in_rounds, self.round = True, round_index

    # --- collectives --------------------------------------------------------------------------------------------------

    @override
    def barrier(self, name: str) -> None:
        self._gather(f"barrier {name}".strip(), b"")

    @override
    def broadcast(self, value: T, src: int) -> T:
        while True:
            mine = to_bytes(value, "broadcast") if self.clients[src] == self._site.client else b""
            payloads = self._gather(f"broadcast from number {src}", mine, replaces=False)
            payload = payloads[sorted(payloads)[src]]
            if payload:  # else the source was lost meanwhile, which every site sees by the same result
                return from_bytes(payload, "broadcast")

    @override
    def reduce(self, tensor: Tensor, group: Any, reduce_op: Any) -> Tensor:
        _refuse_group(group)
        name = str(getattr(reduce_op, "name", reduce_op or "sum")).lower()
        name = {"avg": "mean"}.get(name, name)
        if name not in _REDUCTIONS:
            raise ConfigurationError(f"with elastic membership there is no reduction {reduce_op!r} over all sites")
        tensors = self._tensors(f"reduce ({name}) of {kind_of(tensor)}", tensor)
        result = tensors[0].clone()
        for other in tensors[1:]:
            result = _REDUCTIONS[name](result, other)
        return result / len(tensors) if name == "mean" else result

    @override
    def all_gather(self, tensor: Tensor, group: Any, sync_grads: bool) -> Tensor:
        _refuse_group(group)
        if sync_grads:
            raise ConfigurationError(
                "all_gather(sync_grads=True) lets gradients cross sites in a training step, and with elastic "
                "membership sites meet at merges only; leave sync_grads out"
            )
        return torch.stack(self._tensors(f"all_gather of {kind_of(tensor)}", tensor))

    def gather_tensors(self, tensor: Tensor, group: Any = None) -> list[Tensor]:
        """The tensors of all sites, which may have different shapes."""
        _refuse_group(group)
        return self._tensors("gather of tensors", tensor)

    @override
    def gather_objects(self, value: T, where: str) -> list[T]:
        what = f"gather in {where}"
        payloads = self._gather(what, to_bytes(value, what))
        return [from_bytes(payload, what) for _, payload in sorted(payloads.items())]

    @override
    def broadcast_tensors(self, tensors: Sequence[Tensor], what: str) -> None:
        """Overwrite tensors with those of number 0; a guest keeps its own, and gets the newest with its admission."""
        if not self._in_rounds and not self._entry.is_founder:
            return
        first = self.clients[0]
        payload = to_bytes([one.detach().cpu() for one in tensors], what) if first == self._site.client else b""
        received = self.hand_out(payload, first, what)
        if first != self._site.client:
            with torch.no_grad():
                for tensor, value in zip(tensors, from_bytes(received, what), strict=True):
                    tensor.copy_(value)

    def hand_out(self, payload: bytes, source: int, what: str) -> bytes:
        """Bytes of one founder for all founders, before the first round; in pieces. Guests do not come to it.

        Args:
            payload: At the source: the bytes.
            source: Its client id.
            what: Names them in messages.
        """
        name = f"broadcast of {what}"
        length = int(self._gather(name, str(len(payload)).encode(), is_agreed=False)[source])
        pieces: list[bytes] = []
        for start in range(0, length, PIECE_BYTES):
            piece = payload[start : start + PIECE_BYTES]
            pieces.append(self._gather(name, piece, is_agreed=False)[source])
        return b"".join(pieces)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _tensors(self, what: str, tensor: Tensor) -> list[Tensor]:
        payloads = self._gather(what, to_bytes(tensor.detach().cpu(), what))
        return [from_bytes(payload, what).to(tensor.device) for _, payload in sorted(payloads.items())]

    def _gather(self, what: str, payload: bytes, *, replaces: bool = True, is_agreed: bool = True) -> Payloads:
        """The payloads of all that take part.

        Args:
            what: Names the collective; the same at all sites.
            payload: This site's.
            replaces: Whether a guest's own payload counts, and not the one that its site had as a founder.
            is_agreed: Whether later guests come to this collective, too.
        """
        if self._is_alone:
            return {self._site.client: payload}
        if self._in_rounds:
            return self._ranks.guard(what, lambda: self._site.gather(what, payload, self.round))
        if not self._entry.is_founder:
            return self._replayed(what, payload, replaces=replaces)
        payloads = self._ranks.guard(what, lambda: self._site.gather(what, payload, self.round))
        if is_agreed:
            self.agreed.results.append((what, payloads))
        return payloads

    def _replayed(self, what: str, payload: bytes, *, replaces: bool) -> Payloads:
        number, results = self._number, self.agreed.results
        theirs = results[number][0] if number < len(results) else "the first round"
        if theirs != what:
            raise ConfigurationError(
                f"the set-up of this site differs from that of the run's founders: it has come to its collective "
                f"{number} ({what}), where theirs was {theirs}; use the same model, callbacks and options of the "
                "trainer everywhere"
            )
        self._number += 1
        payloads = results[number][1]
        return {**payloads, self._site.client: payload} if replaces else payloads


def _refuse_group(group: Any) -> None:
    if not is_default(group):
        raise ConfigurationError("with elastic membership there are no process groups: collectives are over all sites")
