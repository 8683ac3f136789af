"""The transformer prior and its decoding."""
