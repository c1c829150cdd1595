"""The method: rounds, blocks, clients and the order of their effects, without Lightning and without sockets."""
