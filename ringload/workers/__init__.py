"""Producers: the processes that fill the ring, and the handle on them."""
