"""How blocks travel between ranks: submit an exchange, wait for its commit, never without a limit."""
