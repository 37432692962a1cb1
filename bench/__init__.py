"""The bench: ringload beside what a user would pick instead, on the same files, in one run. Start at `scenarios` and `run`."""
