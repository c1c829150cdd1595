"""System services: files, threads, lazy imports, plain values as bytes, the command line of the process."""
