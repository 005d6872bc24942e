"""log.jsonl mirrored for TensorBoard, on request. The run itself never depends on it."""

from collections.abc import Callable
from pathlib import Path

from diptych.base.errors import RecipeError


def tensorboard(folder: Path) -> Callable[[str, dict], None]:
    """A function for `Run.mirrors` that writes each number of a log line to `folder`/tensorboard.

    Raises RecipeError when the extra is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        fix = 'pip install "diptych[tensorboard]", or set pretrain.tensorboard=false'
        raise RecipeError(f"TensorBoard is not installed: {fix}") from None
    writer = SummaryWriter(str(folder / "tensorboard"))

    def mirror(event: str, line: dict) -> None:
        for name, value in line.items():
            for part, number in (value if isinstance(value, dict) else {"": value}).items():
                if isinstance(number, int | float) and name not in ("step", "epoch"):
                    writer.add_scalar("/".join(filter(None, (event, name, str(part)))), number, line["step"])
        writer.flush()

    return mirror
