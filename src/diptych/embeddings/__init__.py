"""Functions of (M, E) arrays of any origin, independent of runs and networks."""
