"""scangolf: the best language model in 16,000,000 bytes, trained within a wall-clock budget."""
