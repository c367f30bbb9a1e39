"""Run folders: train one, load it, continue it from other weights, score it."""
