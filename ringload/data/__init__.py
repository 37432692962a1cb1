"""Data: where samples come from, in which order, and how one is loaded."""
