"""The options of `diptych finetune`. Each is an argument of `diptych.finetune`, whose default the help shows."""

from typing import Annotated

from diptych.commands.defaults import option_of_finetune as option

Labels = Annotated[
    str | None,
    option("labels", flag="--share", help="Fraction of each class to train on, 0.01 to 1.0, or 10pc: 10 per class."),
]
Epochs = Annotated[int | None, option("epochs", help="Number of epochs, instead of steps.", min=1)]
Steps = Annotated[int | None, option("steps", min=1)]
BatchSize = Annotated[int | None, option("batch_size", min=2)]
EncoderRate = Annotated[float | None, option("encoder_lr", help="Peak learning rate of the trained encoder.", min=0.0)]
HeadRate = Annotated[float | None, option("head_lr", help="Peak learning rate of its linear layer.", min=0.0)]
ScratchRate = Annotated[
    float | None, option("scratch_lr", help="Peak learning rate when training from scratch.", min=0.0)
]
Published = Annotated[
    bool | None,
    option("published", help="As Barlow Twins' evaluate.py: 20 epochs, batch 256, SGD.", flag="--published"),
]
Seeds = Annotated[
    int | None,
    option("seeds", help="Repetitions with other labels, crops and weights; gives mean and standard deviation.", min=1),
]
Seed = Annotated[int | None, option("seed", help="The first seed.")]
