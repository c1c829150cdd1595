"""Values of other sites that are plain, and not of the form that this site expects, are refused by named errors."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_parablock.errors import ProtocolError
from lightning_parablock.lightning_private import epoch_metrics
from lightning_parablock.strategy.elastic_group import Agreed
from lightning_parablock.strategy.round_start import _read_state
from lightning_parablock.system.payloads import to_bytes

STATE: dict[str, Any] = {
    "progress": {},
    "lr_schedulers": [],
    "optimizers": [],
    "callbacks": {},
    "callback_metrics": {},
    "open_metrics": {},
    "buffers": {},
}


@pytest.mark.parametrize("value", [3, [3], [("a",)], [("a", 3)], [(3, {})], [("a", {"x": b""})], [("a", {0: "x"})]])
def test_what_founders_never_agree_on_is_refused(value: Any) -> None:
    with pytest.raises(ProtocolError, match="what the founders agreed on is malformed"):
        Agreed.from_bytes(to_bytes(value, "it"))


def test_what_founders_agree_on_is_read() -> None:
    results = [("a", {0: b"x", 3: b""})]
    assert Agreed.from_bytes(Agreed(results).to_bytes()).results == results


@pytest.mark.parametrize("change", [*({name: 3} for name in STATE), {"progress": None}, {"buffers": []}])
def test_a_state_of_another_form_is_refused(change: dict[str, Any]) -> None:
    assert _read_state(to_bytes(STATE, "it")) == STATE
    with pytest.raises(ProtocolError, match=r"the start of a round is malformed: its '[a-z_]*' is no (dict|list)"):
        _read_state(to_bytes({**STATE, **change}, "it"))


@pytest.mark.parametrize("value", [3, None, {}, []])
def test_what_is_no_state_is_refused(value: Any) -> None:
    with pytest.raises(ProtocolError, match="the start of a round is malformed"):
        _read_state(to_bytes(value, "it"))


@pytest.mark.parametrize(("name", "is_builtin"), [("eval", True), ("load", False), ("__import__", True), ("save", 1)])
def test_a_site_does_not_choose_a_function_of_another(name: str, is_builtin: Any) -> None:
    entry: Any = {"reduce_fx": name, "is_builtin": is_builtin, "name": "loss"}
    with pytest.raises(ProtocolError, match=f"the other sites reduce 'loss' by '{name}': no reduction"):
        epoch_metrics._empty(entry, None, None)  # type: ignore[arg-type]
