"""Evaluation of images: opening them, feature statistics, reference sets, scores."""
