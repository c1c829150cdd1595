"""Benchmarks: one ``bench_<question>.py`` a question, its raw numbers in ``results/<question>.json``."""
