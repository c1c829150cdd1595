"""The rules of elastic membership: what is kept, redone and served by whom when sites are lost or join."""
