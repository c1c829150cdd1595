"""How the processes of a run find, name and reach each other before the first exchange."""
