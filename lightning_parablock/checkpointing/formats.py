"""Clients' state that an earlier version saved, brought to the form of this one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_parablock.settings import MeanAggregation

FORMAT = 3
"""Format in which this version saves the clients' state."""

READABLE = (2, 3)

_SETTINGS_SINCE = {"aggregation": repr(MeanAggregation()), "delay_warmup_rounds": "0"}
"""Settings that runs have had without saying so, as they had them."""

_NOT_IN_A_TURN_ANY_MORE = ("exposed_s", "wait_peer_s")


def in_present_form(own: Mapping[str, Any], saved_in: int) -> dict[str, Any]:
    """A rank's own state as this version would have saved it.

    Args:
        own: As it was read.
        saved_in: Its format, one of :data:`READABLE`.
    """
    if saved_in == FORMAT:
        return dict(own)
    turns = [
        [t, client, {name: value for name, value in turn.items() if name not in _NOT_IN_A_TURN_ANY_MORE}]
        for t, client, turn in own["engine"]["turns"]
    ]
    return {
        **own,
        "engine": {**own["engine"], "turns": turns},
        "samples": [own["samples"]] if own["samples"] else [],
        # Not part of format 2: it serves warnings and turns that are discarded, and changes no bit of others.
        "reached": {"is_reached": True, "unreached": {}},
        "buffers_before": None,
        "outside": {},
    }


def in_present_words(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings of the run that saved a checkpoint, printable, with those that have been added since."""
    return {**_SETTINGS_SINCE, **{str(name): str(value) for name, value in settings.items()}}
