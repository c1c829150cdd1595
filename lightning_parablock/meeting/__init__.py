"""Start of a run: rendezvous, names and connections of its ranks."""
