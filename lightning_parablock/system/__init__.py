"""System services: files, threads, lazy imports, the command line that started the process."""
