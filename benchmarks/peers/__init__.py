"""The parts of bench_peers: what is compared, the runs of each kind of peer, and the figures made of them."""
