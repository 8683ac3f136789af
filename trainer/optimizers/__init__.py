"""AdamW, with moments of 32 or 16 bits."""
