"""Draws images from a velocity field: settings, batches, results."""

SAMPLES = "samples.npz"  # the images that `fluvial sample` writes
RECORD = "samples.json"  # the record of how they were sampled
WEIGHTS = "weights_sha256"  # its entry with the SHA-256 of the weights of the model
