"""Studies: the same budget for several runs and seeds, and what their scores say about them, with errors."""
