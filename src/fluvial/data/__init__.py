"""Data sets of images and caches of latents, and training batches from them."""
