"""All parsers of bytes that come from elsewhere, by name."""

from __future__ import annotations

from tests.fuzz import desks, files, masks, messages, sites

TARGETS = {target.name: target for room in (messages, desks, sites, files, masks) for target in room.TARGETS}
