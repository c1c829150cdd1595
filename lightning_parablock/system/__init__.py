"""What the program needs of its surroundings: files, threads, imports, the command that started it."""
