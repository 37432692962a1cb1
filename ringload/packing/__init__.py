"""Packing: a source, and the state of the process that it depends on, as bytes for workers."""
