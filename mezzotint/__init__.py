"""Text-to-image systems of the VAE-and-diffusion lineage, trained at scale."""
