"""The ring: memory, slots, books, and the channel to the producers. Knows batches and no processes."""
