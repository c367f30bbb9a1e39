"""Layers of the methods' networks. Each module initialises itself in `reset_parameters`."""
