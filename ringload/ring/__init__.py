"""The ring: memory, and the state of each slot. Knows no pipe and no process."""
