"""Identity of a site: its keys, its card, the roster that all sites sign, and WireGuard files made from it."""
