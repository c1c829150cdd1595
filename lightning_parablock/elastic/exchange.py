"""What the engine waits for: an exchange under its key, whichever generation carries it out in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.errors import CallOrderError
from lightning_parablock.regroup.keys import Key
from lightning_parablock.server.uploads import Upload
from lightning_parablock.transport.base import Exchange, ExchangeFacts


class Landing(Protocol):
    """What an exchange needs to know about its transport."""

    def await_landed(self, exchange: ElasticExchange) -> Tensor:
        """Wait until the exchange has landed; returns W of its block after it, on the host, not to be changed."""
        ...


class ElasticExchange(Exchange):
    """An exchange of an elastic run. The attempt behind it changes with the generation; what it brings does not.

    Args:
        key: Its round and block.
        cohort: The clients that trained the block in the round.
        landing: Lands it.
        device: Where the engine wants the commit.

    Attributes:
        uploads: Those of this site, by client; none where it has no client in the cohort, or begins later.
        drafts: What the newest attempt was given of them: its threads write into residuals of its own.
        attempt: The exchange in the generation that is open; None before an opening and after the exchange has landed.
        is_over: Whether the attempt is.
    """

    def __init__(self, key: Key, cohort: Sequence[int], landing: Landing, device: torch.device) -> None:
        super().__init__(brings_increment=False)
        self.key, self.cohort = key, tuple(cohort)
        self.uploads: Mapping[int, Upload] = {}
        self.drafts: Mapping[int, Upload] = {}
        self.attempt: Exchange | None = None
        self.is_over = False
        self._landing, self._device = landing, device
        self._start_s = time.time()
        self._facts: ExchangeFacts | None = None

    def note_landed(self) -> None:
        """It has landed, here or elsewhere: what a redo needs is released."""
        if self._facts is not None:
            return
        for client, draft in self.drafts.items():  # every server has the whole delta, so the residual is whole, too
            residual = self.uploads[client].residual
            if residual is not None and draft.residual is not None:
                residual.after.copy_(draft.residual.after)
        attempt = self._end()
        self._facts = self._bare_facts() if attempt is None else attempt.facts

    def note_dropped(self) -> None:
        """The members have changed before it had landed, and it is not redone: residuals are as before it."""
        if self._facts is not None:
            return
        for upload in self.uploads.values():
            if upload.residual is not None:
                before = upload.residual.before
                upload.residual.after.zero_() if before is None else upload.residual.after.copy_(before)
        self._end()
        self._facts = replace(self._bare_facts(), is_dropped=True)

    def _end(self) -> Exchange | None:
        attempt, self.attempt = self.attempt, None
        self.uploads = self.drafts = {}
        return attempt

    def _bare_facts(self) -> ExchangeFacts:
        now_s = time.time()
        return ExchangeFacts(self._start_s, now_s, now_s, 0, 0)

    @override
    def wait(self, before: Callable[[], Tensor]) -> Tensor:
        del before  # the store has W before it
        return self._received()

    @override
    def _received(self) -> Tensor:
        return self._landing.await_landed(self).to(self._device, copy=True)

    @property
    @override
    def facts(self) -> ExchangeFacts:
        if self._facts is None:
            raise CallOrderError("the facts are complete only after wait() has returned")
        return self._facts
