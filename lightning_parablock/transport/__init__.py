"""How blocks travel between ranks: submit an exchange, wait for its commit, always with a time limit."""
