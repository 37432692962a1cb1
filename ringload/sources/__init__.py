"""Sources: what a sample is, and how one is loaded."""
