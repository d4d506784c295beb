"""Speed on the machine at hand: right first, then fast, beside the peers that are installed."""
