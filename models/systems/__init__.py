"""What inference composes from trained models."""
