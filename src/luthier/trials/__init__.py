"""Many trials of one experiment: the space of values, what became of each, which is best."""
