"""Diptych: two views of each image, one encoder that its owner can trust.

    import diptych

    photos = diptych.images("photos/", size=32)
    ...                                        # the README's first screen goes on

The door is lazy: a name is imported when it is first touched, so that `import diptych` costs nothing and `diptych --help`
never loads torch. No file or folder of this package bears the name of a function of the door.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# What a user needs, and where it is: a room, a file of a room, or something in a file.
_DOOR = {
    "images": "diptych.data.images:images",
    "View": "diptych.views.view:View",
    "views": "diptych.views",
    "encoder": "diptych.networks.encoders:encoder",
    "methods": "diptych.methods",
    "losses": "diptych.methods.losses",
    "optimizers": "diptych.training.optimizers",
    "schedules": "diptych.training.schedules",
    "pretrain": "diptych.training.pretrain:pretrain",
    "split": "diptych.data.splitting:split",
    "quick": "diptych.training.quick:quick",
    "finetune": "diptych.downstream.finetune:finetune",
    "embed": "diptych.downstream.embed:embed",
    "evaluate": "diptych.downstream.evaluate:evaluate",
    "compare": "diptych.downstream.compare:compare",
    "export": "diptych.downstream.export:export",
    "labels": "diptych.downstream.label_curve:labels",
    "diagnose": "diptych.embeddings.diagnose:diagnose",
    "load": "diptych.runs.encoder:load",
    "Trained": "diptych.runs.encoder:Trained",
    "Preprocessing": "diptych.networks.inference:Preprocessing",
    "overview": "diptych.downstream.overview:overview",
    "report": "diptych.reporting.report:report",
}

if TYPE_CHECKING:
    from diptych import methods, views
    from diptych.data.images import images
    from diptych.data.splitting import split
    from diptych.downstream.compare import compare
    from diptych.downstream.embed import embed
    from diptych.downstream.evaluate import evaluate
    from diptych.downstream.export import export
    from diptych.downstream.finetune import finetune
    from diptych.downstream.label_curve import labels
    from diptych.downstream.overview import overview
    from diptych.embeddings.diagnose import diagnose
    from diptych.methods import losses
    from diptych.networks.encoders import encoder
    from diptych.networks.inference import Preprocessing
    from diptych.reporting.report import report
    from diptych.runs.encoder import Trained, load
    from diptych.training import optimizers, schedules
    from diptych.training.pretrain import pretrain
    from diptych.training.quick import quick
    from diptych.views.view import View

__all__ = ["Preprocessing", "Trained", "View", "compare", "diagnose", "embed", "encoder", "evaluate", "export", "finetune",
           "images", "labels", "load", "losses", "methods", "optimizers", "overview", "pretrain", "quick", "report", "schedules",
           "split",
           "views"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module 'diptych' has no attribute {name!r}; it has {', '.join(sorted(_DOOR))}")
    file, _, attribute = _DOOR[name].partition(":")
    module = importlib.import_module(file)
    return getattr(module, attribute) if attribute else module


def __dir__() -> list[str]:
    return sorted({"__version__", *_DOOR})
