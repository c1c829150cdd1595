"""The engine's part of a checkpoint: what a rank needs to continue its rounds, beside W and the random states.

Its keys come in three parts, because a change of members treats them differently:

- shared: the same on every rank, so any rank can hand it to a client that joins;
- own: what belongs to this rank's clients and no other rank has;
- served: this rank's pieces of the server's state, named by their place in the model and not by the rank.

What is in flight is not waited for: its deltas are saved, with residuals and server state from before its exchange, and
are submitted again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from lightning_parablock.federation.flights import TurnFacts
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.schedule import Work
from lightning_parablock.server.shard import StatePiece
from lightning_parablock.server.uploads import Upload

Facts = dict[int, dict[int, TurnFacts]]
"""Round -> client -> what it did in its turn."""


def state_of(engine: RoundEngine, replaced: Mapping[int, Tensor] | None = None) -> dict[str, Any]:
    """The state of an engine, at any point of a round: tensors and plain values.

    Args:
        engine: The rounds.
        replaced: What :meth:`RoundEngine.show_committed` returned, if the model shows W at the moment.
    """
    return {**_shared(engine), **_own(engine, replaced), **_served(engine)}


def restore(engine: RoundEngine, state: Mapping[str, Any]) -> None:
    """Continue from :func:`state_of` on a fresh engine whose model shows W; submits again what was in flight.

    Afterwards the turn that was open is open again, if one was. Collective: all ranks must do so at the same point.
    """
    engine.transport.load_server_state(StatePiece(**piece) for piece in state["server"])
    engine.contributions.load_state(state["residuals"])
    engine.transport.load_aggregator_state(state.get("aggregator", ()))
    facts = _facts_of(state["turns"])
    for t, work in sorted(_work_of(state["work"]).items()):
        engine.work = work
        engine.submit(t, work, _uploads_of(engine, (row[1:] for row in state["in_flight"] if row[0] == t)), facts[t])
    engine.model.show_all(engine.loaded)
    engine.norms = {block: norm for block, norm in state["norms"]}
    engine.begin_at(state["round"])
    if state["turn"] or state["is_open"]:
        _reopen_round(engine, state)
        engine.turn_facts = facts.get(engine.round, {})


def _shared(engine: RoundEngine) -> dict[str, Any]:
    flights = engine.flights.items()
    return {
        "round": engine.round,
        "running": [[block, list(cohort)] for block, cohort in engine.work.items()],
        "work": [[t, block, list(cohort)] for t, flight in flights for block, cohort in flight.work.items()],
        "norms": [[block, norm] for block, norm in engine.norms.items()],
        **({"aggregator": told} if (told := engine.transport.aggregator_state()) else {}),
    }


def _own(engine: RoundEngine, replaced: Mapping[int, Tensor] | None) -> dict[str, Any]:
    flights, now_s = engine.flights.items(), time.time()
    facts = [*((t, flight.turn_facts) for t, flight in flights), (engine.round, engine.turn_facts)]
    return {
        "block": engine.block,
        "turn": engine.turn,
        "steps": engine.steps,
        "is_open": engine.has_open_turn,
        "active": _active(engine, replaced),
        "uploads": [[client, *_plain(upload)] for client, upload in engine.uploads.items()],
        "in_flight": [
            [t, client, *_plain(upload)] for t, flight in flights for client, upload in flight.uploads.items()
        ],
        "turns": [[t, client, _shifted(asdict(turn), -now_s)] for t, turns in facts for client, turn in turns.items()],
        "residuals": engine.contributions.state(),
    }


def _served(engine: RoundEngine) -> dict[str, Any]:
    return {"server": [dict(vars(piece)) for piece in engine.transport.server_state()]}


def _active(engine: RoundEngine, replaced: Mapping[int, Tensor] | None) -> dict[str, Any] | None:
    client = engine.active
    if client is None:
        return None
    # While it is being trained, the block always shows something other than W.
    values = replaced[engine.block] if replaced is not None else engine.flat.pack(engine.block)
    return {"samples": client.samples, "gradient_norm": client.gradient_norm, "values": values}


def _reopen_round(engine: RoundEngine, state: Mapping[str, Any]) -> None:
    # As it was looked up: gradient norms that have been merged inside the round would draw another block now.
    engine.begin_round({block: tuple(cohort) for block, cohort in state["running"]})
    engine.turn = state["turn"]
    engine.uploads = _uploads_of(engine, state["uploads"])
    if not state["is_open"]:
        return
    client_id = engine.turns[engine.turn]
    if client_id is not None and state["steps"] >= engine.delay_rest_steps > 0:
        engine.take_in(engine.clients[client_id], engine.due_in_turn)
    engine.begin_turn(client_id)  # s is the held value, also where a commit has moved it since
    engine.steps, engine.block = state["steps"], state["block"]
    if client_id is not None:
        active, client = state["active"], engine.clients[client_id]
        engine.flat.unpack(engine.block, active["values"])
        client.samples, client.gradient_norm = active["samples"], active["gradient_norm"]


def _plain(upload: Upload) -> list[Any]:
    return [upload.delta, upload.weight, upload.gradient_norm]


def _uploads_of(engine: RoundEngine, rows: Iterable[Sequence[Any]]) -> dict[int, Upload]:
    device = engine.flat.device
    return {client: Upload(delta.to(device), weight, gradient_norm=norm) for client, delta, weight, norm in rows}


def _shifted(facts: Mapping[str, Any], by_s: float) -> dict[str, Any]:
    """Times are saved relative to the moment of saving: what a stop took is no part of a turn."""
    return {**facts, "start_s": facts["start_s"] + by_s, "end_s": facts["end_s"] + by_s}


def _facts_of(rows: Iterable[Sequence[Any]]) -> Facts:
    facts, now_s = Facts(), time.time()
    for t, client, turn in rows:
        facts.setdefault(t, {})[client] = TurnFacts(**_shifted(turn, now_s))
    return facts


def _work_of(rows: Iterable[Sequence[Any]]) -> dict[int, Work]:
    work = dict[int, Work]()
    for t, block, cohort in rows:
        work.setdefault(t, {})[block] = tuple(cohort)
    return work
