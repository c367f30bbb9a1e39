"""Shared helpers that know nothing of models: checks, files, precision, progress, randomness, pictures."""
