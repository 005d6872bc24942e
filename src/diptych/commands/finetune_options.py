"""The options of `diptych finetune`. Each is an argument of `diptych.finetune`, whose default the help shows."""

from typing import Annotated

from diptych.commands.defaults import option_of_finetune as option

Labels = Annotated[
    str | None, option("labels", flag="--share", help="The share of every class, 0.01 to 1.0, or 10pc: 10 per class.")
]
Epochs = Annotated[int | None, option("epochs", help="Instead of steps.", min=1)]
Steps = Annotated[int | None, option("steps", min=1)]
BatchSize = Annotated[int | None, option("batch_size", min=2)]
EncoderRate = Annotated[float | None, option("encoder_lr", help="Peak rate of the trained encoder.", min=0.0)]
HeadRate = Annotated[float | None, option("head_lr", help="Peak rate of its linear layer.", min=0.0)]
ScratchRate = Annotated[float | None, option("scratch_lr", help="Peak rate from scratch.", min=0.0)]
Published = Annotated[
    bool | None,
    option("published", help="Barlow Twins' evaluate.py: 20 epochs of 256, SGD.", flag="--published"),
]
Seeds = Annotated[
    int | None, option("seeds", help="Repeat with other labels, crops and weights; mean and spread.", min=1)
]
Seed = Annotated[int | None, option("seed", help="The first seed.")]
