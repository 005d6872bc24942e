"""The names of subjects: whose accuracy a row of a table is."""

CHANCE = "chance"
RAW_PIXELS = "raw pixels"
CLOSED_FORM = "closed form"  # `training.quick` of the same unlabelled images
UNTRAINED = "untrained"
FROZEN = "trained, frozen"  # a linear layer on the encoder, beside one that is trained further
SCRATCH = "from scratch"
TRAINED = "trained"  # the main subject of an evaluation
JOINED = "joined"  # the closed form and the trained encoder side by side (`training.joining`)
