"""scangolf: the best language model that fits in 16,000,000 bytes, trained within a wall-clock budget."""
