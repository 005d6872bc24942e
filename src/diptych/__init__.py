"""Diptych: two views of each image, one encoder that its owner can trust.

    import diptych

    photos = diptych.images("photos/", size=32)
    ...                                        # the README's first screen goes on

The door is lazy: a name is imported when it is first touched, so that `import diptych` costs nothing and `diptych --help`
never loads torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# What a user needs, and where it lives. A function may share its name with the file that holds it (or, as `evaluate`,
# with one that does not): whoever says `diptych.pretrain` gets the function, `from diptych.pretrain import ...` the file.
_DOOR = {
    "images": "diptych.images:images",
    "View": "diptych.views:View",
    "views": "diptych.views",
    "encoder": "diptych.encoders:encoder",
    "methods": "diptych.methods",
    "losses": "diptych.losses",
    "optimizers": "diptych.optimizers",
    "schedules": "diptych.schedules",
    "pretrain": "diptych.pretrain:pretrain",
    "finetune": "diptych.finetune:finetune",
    "embed": "diptych.judge:embed",
    "evaluate": "diptych.judge:evaluate",
    "diagnose": "diptych.diagnose:diagnose",
    "load": "diptych.weights:load",
    "report": "diptych.report:report",
}

if TYPE_CHECKING:
    from diptych import losses, methods, optimizers, schedules, views
    from diptych.diagnose import diagnose
    from diptych.encoders import encoder
    from diptych.finetune import finetune
    from diptych.images import images
    from diptych.judge import embed, evaluate
    from diptych.pretrain import pretrain
    from diptych.report import report
    from diptych.views import View
    from diptych.weights import load

__all__ = ["View", "diagnose", "embed", "encoder", "evaluate", "finetune", "images", "load", "losses", "methods",
           "optimizers", "pretrain", "report", "schedules", "views"]  # fmt: skip


class _Door(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name not in _DOOR:
            raise AttributeError(f"module 'diptych' has no attribute {name!r}; it has {', '.join(sorted(_DOOR))}")
        file, _, attribute = _DOOR[name].partition(":")
        found = importlib.import_module(file)
        self.__dict__[name] = value = getattr(found, attribute) if attribute else found
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _DOOR and ":" in _DOOR[name] and isinstance(value, ModuleType):
            return  # the import system binds a file it has loaded to its package: the door keeps the name for the function
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_DOOR})


sys.modules[__name__].__class__ = _Door
