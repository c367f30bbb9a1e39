"""The layers that the methods are built from. Each module initialises itself in `reset_parameters`."""
