"""Benchmarks: ringload and other loaders on the same files, in one run. Begin reading at `scenarios` and `run`."""
