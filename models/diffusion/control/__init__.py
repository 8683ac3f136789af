"""Control branches: conditions from images for a network that is trained (ControlNet)."""
