"""Guidance explored: a sweep of weights, intervals, averages and steps, measured on few images."""
