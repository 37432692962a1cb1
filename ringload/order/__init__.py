"""Orders: which sample is in which row of which batch, and what it draws. Arithmetic, without state of any process."""
