"""More epochs for a finished run: it becomes a stopped run of a longer recipe, which `resume` continues.

Steps are counted on from the last one. The schedule is a function of the share of all epochs that is done, so the rate rises
again to what a run of the new length would have there: after 20 of 40 epochs of a cosine, to half its peak.
"""

import os
from pathlib import Path
from typing import Any

from diptych.base import strict_yaml
from diptych.base.errors import CheckpointError, RecipeError
from diptych.base.files import require_free_file, write_file
from diptych.data.images import Images
from diptych.runs import checkpoints
from diptych.runs.pictures import picture_path
from diptych.runs.run import Run, compare_records, take_lock


def extend(folder: str | Path, epochs: int, images: Images, record: dict | None = None) -> None:
    """Prepare the finished run in `folder` for `pretrain(..., epochs=epochs, resume=True)`, with the same other arguments.

    epochs: the new total. record: as for `pretrain`; it is compared with that of the run. recipe.yaml gets the new total and
    a line of history, `extended: [{from: 20, to: 40}]`. evaluations.jsonl becomes evaluations_20_epochs.jsonl, as its
    accuracies are of the encoder so far; the answers by image are deleted; encoder/ stays until the new one replaces it. A
    run that has been extended to `epochs` already, and was stopped on the way or has finished, is left as it is.

    Raises RecipeError for no more epochs than the run has and for a run with early stopping, CheckpointError for one that has
    not finished, has no checkpoint, or was made with another record or other images, DataError where there is no run.
    """
    run = Run(folder)
    with take_lock(run.folder):
        recipe = run.recipe
        history, done = recipe.get("extended", []), run.section("pretrain").get("epochs")
        if not isinstance(done, int) or not are_extensions(history):
            raise CheckpointError(f"{folder}/recipe.yaml has no number of epochs, or is damaged: it cannot be extended")
        if history and history[-1]["to"] == epochs == done:
            return
        if not run.finished:
            raise CheckpointError(
                f"{folder} has not finished its {done} epochs: continue it with --resume, then extend it"
            )
        if epochs <= done:
            raise RecipeError(f"{folder} has {done} epochs: extend it to more than that, not to {epochs}")
        if record is not None:
            compare_records(run.folder, record | {"pretrain": record["pretrain"] | {"epochs": done}})
        scores, kept_scores = run.folder / "evaluations.jsonl", run.folder / f"evaluations_{done}_epochs.jsonl"
        if scores.exists():
            require_free_file(kept_scores)
        step = unfinish(run, images)
        recipe["pretrain"]["epochs"], recipe["extended"] = epochs, [*history, {"from": done, "to": epochs}]
        write_file(run.folder / "recipe.yaml", strict_yaml.write(recipe).encode())
        run.rewind(step)  # without the line of its end
        if scores.exists():
            os.replace(scores, kept_scores)
        picture_path(run.folder, "answers").unlink(missing_ok=True)


def are_extensions(history: object) -> bool:
    """Whether `history` is what `extend` writes: [{from: 20, to: 40}, ...]."""
    return isinstance(history, list) and all(isinstance(entry, dict) and "to" in entry for entry in history)


def unfinish(run: Run, images: Images) -> int:
    """Save the last checkpoint again, as one of a run that goes on; returns its step."""
    checkpoints.clear(folder := run.folder / "checkpoints")
    checkpoint = checkpoints.newest(folder)
    if checkpoint is None:
        raise CheckpointError(f"{run.folder} has no checkpoint to continue from; start a longer run with another --out")
    if (checkpoint / "best.safetensors").exists():
        raise RecipeError(f"{run.folder} ended with the weights of its best epoch (early stopping) and cannot be "
                          "extended; start a longer run with another --out")  # fmt: skip
    state: dict[str, Any] = checkpoints.read_state(checkpoint)
    if state["data"] != images.fingerprint:
        raise CheckpointError(f"{checkpoint} was made from other images; bring the same images back")
    tensors = {name: checkpoints.read_tensors(checkpoint / f"{name}.safetensors") for name in ("model", "optimizer")}
    step = state.pop("step")
    checkpoints.save(checkpoint.parent, step, tensors, state | {"finished": False})
    return step
