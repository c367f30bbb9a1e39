"""Tools for runs: cost estimates, benchmarks, comparisons, curves and diagnoses."""
