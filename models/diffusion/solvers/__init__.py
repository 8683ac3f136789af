"""One solver a file; each takes any denoiser."""
