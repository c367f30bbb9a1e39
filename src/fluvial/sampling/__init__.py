"""Draws images from a velocity field: settings, batches, results."""
