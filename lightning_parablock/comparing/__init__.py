"""Several methods from one configuration, run one after the other and put into one table and one picture."""
