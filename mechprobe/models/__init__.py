"""Floor 2: a checkpoint becomes weights in a graph."""
