"""The training loop and its parts. It knows a loss, a model and batches, and nothing of any method."""
