"""The diffusion prior of unCLIP: CLIP image embeddings from captions."""
