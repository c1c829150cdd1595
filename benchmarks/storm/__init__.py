"""The parts of bench_storm: faults drawn by a seed, the programs of a site, the launcher, the figures, the picture."""
