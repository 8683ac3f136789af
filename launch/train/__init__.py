"""Training processes on this machine."""
