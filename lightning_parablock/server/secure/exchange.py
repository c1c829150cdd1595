"""What a rank knows of a secure exchange: who is in it, its steps, and what its sums tell for the next one."""

from __future__ import annotations

import threading
from collections.abc import Collection, Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_parablock.errors import NonFiniteError, SecureSumError, TooFewSitesError
from lightning_parablock.masking.ring import Ring
from lightning_parablock.masking.scales import Scale, n_records, steps
from lightning_parablock.masking.session import MIN_SITES
from lightning_parablock.regroup.keys import Key
from lightning_parablock.server.secure.layout import A_SITE, N_COUNTS, records_of


class SecureExchange:
    """One exchange on one rank.

    Args:
        key: Its round and block.
        numel: Scalars of the block.
        cohort: Clients that take part, whether they have trained or not: N is their number.
        sites: Names of the sites that host them.
        ring: Of its values.
        scale: What its steps are made from; None where it has to tell that itself, before its values.
        min_sites: Least number of sites whose clients must have trained.

    Attributes:
        limit: L: largest magnitude of a client's whole number.
        total_weight: Sum of the clients' n_i, as last told.
        clients: Clients that have trained; None until a sum has told it.
    """

    def __init__(
        self,
        key: Key,
        numel: int,
        cohort: Collection[int],
        sites: tuple[str, ...],
        ring: Ring,
        scale: Scale | None,
        min_sites: int = MIN_SITES,
    ) -> None:
        self.key, self.numel, self.n_clients, self.sites = key, numel, len(cohort), sites
        self._min_sites = min_sites
        self.ring, self.scale = ring, scale
        self.limit = ring.limit(max(1, self.n_clients))
        self.total_weight = 0
        self.clients: int | None = None
        self._trained = 0
        self._sum_of_logs = torch.zeros(n_records(numel), dtype=torch.int32, device="cpu")
        self._steps: Tensor | None = None
        self._lock = threading.Lock()

    @property
    def is_first(self) -> bool:
        """Whether no commit of the block has told the sizes of its values: then the l_i go before the values."""
        return self.scale is None

    def steps_of(self, part: slice) -> Tensor:
        """The step of each record of a part, shape (n_records,), float32, on the host."""
        with self._lock:
            if self._steps is None:
                self._steps = self._make_steps()
            return self._steps[records_of(part)]

    def _make_steps(self) -> Tensor:
        scale = self.told() if self.scale is None else self.scale
        if scale is None:  # no client has trained: all numbers are zero
            return torch.ones(n_records(self.numel), dtype=torch.float32, device="cpu")
        with self.named(slice(0, self.numel)):
            return steps(scale.sum_of_logs, scale.clients, self.limit, self.ring.bytes_per_value)

    def learn(self, part: slice, facts: Tensor) -> None:
        """Take in the opened facts of a part.

        Args:
            part: Scalars of the block.
            facts: Sums of l_i, then the sum of n_i and the numbers of clients and sites that have trained; int32.

        Raises:
            SecureSumError: the clients cannot have told this.
            TooFewSitesError: clients of fewer sites than must be in a sum have trained.
        """
        weight, trained = (int(count) for count in facts[-N_COUNTS:].tolist())
        sites, clients = divmod(trained, A_SITE)
        known = self.clients is not None
        can_be = 0 <= clients <= min(self.n_clients, weight) and bool(clients) <= sites <= min(clients, len(self.sites))
        if not can_be or (known and (weight, trained) != (self.total_weight, self._trained)):
            raise SecureSumError(
                f"{self.describe(part)}: {self.n_clients} clients have told that {clients} of them trained on {weight} "
                "samples, or another part has told otherwise; a site's part is missing, was damaged, or was masked for "
                "other sites or another session; no part of it may be used"
            )
        if 0 < sites < self._min_sites:
            raise TooFewSitesError(
                f"{self.describe(part)}: clients of only {sites} of the {len(self.sites)} sites in the sum have "
                f"trained, and it needs {self._min_sites} (min_sites): it shows too much of what each contributed, and "
                "the run ends with the committed model of before; make sure that every site has samples to train on in "
                "each round, and let more sites take part"
            )
        self._sum_of_logs[records_of(part)] = facts[:-N_COUNTS]
        self.total_weight, self.clients, self._trained = weight, clients, trained

    def refuse_to_sit_out(self) -> None:
        """For a site of which no client has trained, before anything of it is sent.

        Raises:
            TooFewSitesError: the sum would have too few sites, whatever the others have done.
        """
        if len(self.sites) <= self._min_sites:
            raise TooFewSitesError(
                f"{self.describe(slice(0, self.numel))}: no client of this site has trained: training_step returned no "
                f"loss, or there were no samples; without this site, the sum has at most {len(self.sites) - 1} sites "
                f"and needs {self._min_sites} (min_sites). Nothing of the round was sent. Let every site have samples "
                "to train on in each round, or let more sites take part"
            )

    def told(self) -> Scale | None:
        """What the exchange has told of its values, once it is complete; None where no client has trained."""
        return Scale(self._sum_of_logs, self.clients) if self.clients else None

    @contextmanager
    def named(self, part: slice) -> Generator[None]:
        """What arithmetic refuses within this context says where that was, and what to do."""
        try:
            yield
        except NonFiniteError as error:
            raise NonFiniteError(
                f"{self.describe(part)}: {error}: nothing of it was sent; a delta times its weight, with the residual, "
                "is too large for float32: lower the learning rate"
            ) from error
        except SecureSumError as error:
            raise SecureSumError(f"{self.describe(part)}: {error}") from error

    def describe(self, part: slice) -> str:
        """For messages."""
        return f"round {self.key[0]}, block {self.key[1]}, scalars {part.start} to {part.stop - 1}"
