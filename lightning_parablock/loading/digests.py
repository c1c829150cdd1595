"""What a client's training data are, in a few words that its site keeps to itself: a resumed run must have the same.

Unlike the fingerprints that sites compare, a digest has every sample, and the batches in which they come.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable

from torch.utils.data import DataLoader

from lightning_parablock.loading.lengths import length_of
from lightning_parablock.loading.orders import draws_order, first_batches
from lightning_parablock.loading.shards import data_of, hash_of_samples, is_comparable

MOST_SAMPLES = 100_000
"""Of a data set without a hash of its own; to read more of them could take longer than other sites wait."""

_NOT_KNOWN = "not known: "


def data_digests(loaders: Iterable[object]) -> list[str]:
    """The digest of each loader's data; a data set that several loaders share is read once."""
    read: dict[int, str] = {}
    return [data_digest(loader, read) for loader in loaders]


def data_digest(loader: object, read: dict[int, str] | None = None) -> str:
    """A hash of all samples of a client's training data and of how they make batches; reads every sample.

    Data that cannot be compared never have the same digest twice (:func:`why_not_known` has the reason).

    Args:
        loader: As the client trains on it.
        read: Hashes of the samples of data sets that have been read, by their ``id``.
    """
    if not isinstance(loader, DataLoader) or not is_comparable(loader):
        return _unlike_any(f"a {type(data_of(loader)).__name__} cannot be read without being used up")
    dataset = data_of(loader)
    size, whole = length_of(dataset) or 0, getattr(dataset, "sha256", None)
    if not isinstance(whole, str):
        if size > MOST_SAMPLES:
            return _unlike_any(
                f"it would take too long to hash the more than {MOST_SAMPLES:,} samples of a {type(dataset).__name__}; "
                "give it an attribute sha256, the hash of all of them"
            )
        read = {} if read is None else read
        if id(dataset) not in read:
            read[id(dataset)] = hash_of_samples(dataset, size, range(size))
        whole = read[id(dataset)]
    if draws_order(loader) is None:
        return _unlike_any("the sampler continues a random state of its own")
    # Worker processes draw from seeds of their own.
    how = (loader.batch_size, loader.drop_last, loader.num_workers, first_batches(loader, 0))
    return hashlib.sha256(f"{whole} of {size}, {how}".encode()).hexdigest()


def why_not_known(digest: str) -> str | None:
    """Why a digest is like no other one; None where it is one of data."""
    return digest.removeprefix(_NOT_KNOWN).rpartition(" ")[0] if digest.startswith(_NOT_KNOWN) else None


def _unlike_any(why: str) -> str:
    return f"{_NOT_KNOWN}{why} {secrets.token_hex(16)}"
