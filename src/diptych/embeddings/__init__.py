"""Functions of (M, E) arrays, on anybody's vectors: they know no run and no network."""
