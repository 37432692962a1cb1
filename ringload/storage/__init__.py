"""Storage: from a key to bytes."""
