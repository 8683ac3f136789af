"""Tasks of unCLIP besides denoising."""
