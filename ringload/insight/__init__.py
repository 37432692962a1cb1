"""The command line: plans, the demo, and their tables."""
