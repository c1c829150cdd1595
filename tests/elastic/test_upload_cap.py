"""All that a site uploads counts towards one cap: exchanges of every generation, pulls and backups."""

from __future__ import annotations

import pytest

from lightning_parablock.elastic import opening
from lightning_parablock.settings import Settings
from lightning_parablock.transport import torch_distributed
from lightning_parablock.transport.pacing import Pacer
from tests.elastic.live_sites import ToySite
from tests.support.local_arbiter import LocalLighthouse

_LIMIT_S = 120.0


def test_a_site_has_one_cap_for_all_that_it_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Counting] = []

    class Counting(Pacer):
        def __init__(self, upload_bps: float | None) -> None:
            super().__init__(upload_bps)
            self.sent_bytes = 0
            made.append(self)

        def wait(self, message_bytes: int) -> None:
            self.sent_bytes += message_bytes

    for module in (opening, torch_distributed):
        monkeypatch.setattr(module, "Pacer", Counting)
    lighthouse = LocalLighthouse(founders=2)
    settings = Settings(local_steps=2, delay_steps=1, upload_bps=1e9)
    sites = [ToySite(name, lighthouse, settings, 3, pause_s=0.0, min_clients=2) for name in "ab"]
    for site in sites:
        site.start()
    for site in sites:
        site.join(_LIMIT_S)
        assert not site.is_alive() and site.error is None
        site.site.close()
    assert len(made) == len(sites)
    assert all(each.sent_bytes > 0 for each in made)
