"""All parsers of bytes that come from elsewhere, by name."""

from __future__ import annotations

from tests.fuzz import desks, files, masks, messages, secure_sums, site_kit, sites

ROOMS = (messages, desks, sites, files, masks, secure_sums, site_kit)
TARGETS = {target.name: target for room in ROOMS for target in room.TARGETS}
