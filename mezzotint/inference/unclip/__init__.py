"""unCLIP: images from captions through CLIP embeddings, and edits of images."""
