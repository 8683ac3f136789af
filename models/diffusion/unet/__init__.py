"""The convolutional network of DDPM, ADM, GLIDE and unCLIP, in all their shapes."""
