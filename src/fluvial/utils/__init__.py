"""Helpers that do not depend on models: checks, files, precision, progress, random numbers, pictures, weights."""
