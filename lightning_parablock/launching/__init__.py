"""Starting the processes of a run, and what other launchers report about theirs."""
