"""The command line and recipes: only here are names turned into objects."""
