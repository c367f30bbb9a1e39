"""Plans a run for a data set and a time: what the data is, what fits the machine, and the reasons."""
