"""Which ranks are alive: heartbeats, what they report to each other, and how a run ends on all of them."""
