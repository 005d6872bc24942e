"""The page that a run folder becomes, and its pictures."""
