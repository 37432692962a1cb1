"""Adapters: the loader as Keras and others take it. The only place that imports frameworks."""
