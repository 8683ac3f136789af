"""First stages: images to codes and back."""
