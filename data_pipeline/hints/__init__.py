"""Hints: images that condition a control. Made from images by detectors, or a user's own."""
