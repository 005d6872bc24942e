"""The command line, and recipes: the one place where names become objects."""
