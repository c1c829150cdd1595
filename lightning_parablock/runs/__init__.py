"""The life of one run of the command line: its folder, its files, its manifest."""
