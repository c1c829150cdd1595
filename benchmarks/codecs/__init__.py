"""bench_codecs: the timed codecs and the picture."""
