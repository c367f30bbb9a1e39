"""Estimates, benchmarks, comparisons, curves and diagnoses of runs."""
