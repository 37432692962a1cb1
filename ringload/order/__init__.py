"""Orders: which sample is in which row of which batch, and its draw key. Arithmetic, without state of any process."""
