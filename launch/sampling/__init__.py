"""Images from trained systems and models."""
