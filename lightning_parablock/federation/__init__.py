"""The method: rounds, blocks, clients and the order of their effects; no Lightning and no sockets."""
