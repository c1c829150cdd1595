"""Elastic membership at one site: lost sites, returning and new ones, while the engine keeps training."""
