"""Colours of image files as sRGB: ICC profiles and the colour chunks of PNG."""
