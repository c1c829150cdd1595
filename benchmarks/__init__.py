"""Benchmarks: one ``bench_<question>.py`` per question; its raw numbers are in ``results/<question>.json``."""
