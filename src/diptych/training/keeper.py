"""The checkpoints of a run: when one is due, what it holds, how a run goes on from it, what a diverged run leaves."""

import json
import time
from pathlib import Path

import torch

from diptych.base.arithmetic import choose_precision
from diptych.base.errors import CheckpointError, DivergedError
from diptych.base.files import make_folder, read_json_lines, write_file
from diptych.base.processes import barrier, rank
from diptych.data.images import Images
from diptych.methods import Method
from diptych.runs import checkpoints
from diptych.runs.contents import BAD_FILE_KINDS
from diptych.runs.run import Run
from diptych.training.diary import State, in_words
from diptych.training.learner import Taken


class Keeper:
    """Saves and restores method, optimizer and state; the first process writes.

    minutes: between two checkpoints. The images' fingerprint is kept with each: a run goes on with the same images only.
    """

    def __init__(
        self, run: Run, method: Method, optimizer: torch.optim.Optimizer, images: Images, *, minutes: float = 5.0
    ):
        self.run, self.method, self.optimizer, self.images, self.minutes = run, method, optimizer, images, minutes
        self.folder = run.folder / "checkpoints"
        self.saved_at = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self.saved_at > 60 * self.minutes

    def save(self, state: State) -> None:
        """A checkpoint of the step that has just ended."""
        self.saved_at = time.monotonic()
        if rank() == 0:
            memory, remainder = checkpoints.pack_optimizer(self.optimizer)
            tensors = {"model": self.method.state_dict(), "optimizer": memory}
            if state.best_weights:
                tensors["best"] = state.best_weights
            numbers = state.numbers() | {
                "optimizer": remainder,
                "data": self.images.fingerprint,
                "images": len(self.images),
            }
            self.run.flush()
            checkpoints.save(self.folder, state.step, tensors, numbers)
        barrier()  # all leave together: who starts the processes ends them soon after the first has gone

    def resume(self) -> State:
        """Put weights, memory and log back to the newest checkpoint, if there is one; returns where the run stands."""
        if rank() == 0:
            checkpoints.clear(self.folder)
        barrier()
        checkpoint = checkpoints.newest(self.folder)
        state = self.first_state() if checkpoint is None else self.restore(checkpoint)
        if rank() == 0 and not state.finished:
            self.run.rewind(-1 if checkpoint is None else state.step)
            self.list_bad()
        return state

    def first_state(self) -> State:
        """Where a run without a checkpoint stands: at its beginning, or at its end, if they were removed to save room.

        The folder of checkpoints is made before the first line is logged: where there are lines and no folder, it was
        removed, and starting at step 0 would pass for a continuation. Raises CheckpointError then.
        """
        if self.run.finished:
            return State(finished=True)
        if (self.run.lines() and not self.folder.is_dir()) or (self.folder / "last").exists():
            raise CheckpointError(
                f"{self.folder} has lost its checkpoints: restore them, or start over with --overwrite"
            )
        if rank() == 0:
            make_folder(self.folder)
        return State()

    def settle_precision(self, state: State, wanted: str, device: torch.device) -> str:
        """The precision in which the run computes to its end; what "auto" chooses at its start is logged."""
        if not state.precision:
            state.precision = choose_precision(wanted, device)
            if wanted == "auto" and rank() == 0:
                self.run.log("precision", step=state.step, precision=state.precision)
        return state.precision

    def list_bad(self) -> None:
        """Append what is left out of the source, once, to bad_files.jsonl."""
        listed = {line["key"] for line in read_json_lines(self.run.folder / "bad_files.jsonl", BAD_FILE_KINDS)}
        if new := [row for row in self.images.left_out if row["key"] not in listed]:
            self.run.append("bad_files.jsonl", new)

    def restore(self, checkpoint: Path) -> State:
        """Put weights and the optimizer's memory back where a checkpoint left them."""
        try:
            return State(**self._fill(checkpoints.read_state(checkpoint), checkpoint))
        except (
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
        ) as error:  # whole, by its hashes, but not as we write it
            raise CheckpointError(f"{checkpoint} was written by another version of diptych ({type(error).__name__}: {error}); "
                                  "use that version, or start over with --overwrite") from None  # fmt: skip

    def _fill(self, numbers: dict, checkpoint: Path) -> dict:
        """Load a checkpoint's tensors; returns what makes its State."""
        images, otherwise = self.images, "bring the same images back, or start a new run with another --out"
        if (count := numbers.get("images", len(images))) != len(
            images
        ):  # the same files, but another one turned out bad
            raise CheckpointError(
                f"{checkpoint} was made from {count} images, of which now {len(images)} can be read; {otherwise}"
            )
        if numbers["data"] != images.fingerprint:
            marks = f"fingerprint {numbers['data'][:12]}, now {images.fingerprint[:12]}"
            raise CheckpointError(f"{checkpoint} was made from other images ({marks}); {otherwise}")
        checkpoints.load_exactly(self.method, checkpoints.read_tensors(checkpoint / "model.safetensors"), checkpoint)
        memory = checkpoints.read_tensors(checkpoint / "optimizer.safetensors")
        checkpoints.unpack_optimizer(self.optimizer, memory, numbers["optimizer"])
        best = checkpoint / "best.safetensors"
        values = {name: type(value)(numbers[name]) for name, value in State().numbers().items()}
        return values | {"best_weights": checkpoints.read_tensors(best) if best.exists() else {}}

    def give_up(self, state: State, bad: Taken) -> DivergedError:
        """Save the last good step, write down what is known of the bad one; returns the error to raise."""
        self.save(state)
        loss, norm, *parts = bad.numbers.tolist()
        named = dict(zip(bad.names[2:], parts, strict=True))
        known = {"step": bad.step, "rank": rank(), "loss": str(loss), "gradient_norm": str(norm), "lr": bad.rates,
                 "parts": {name: str(value) for name, value in named.items()}}  # fmt: skip
        folder = self.run.folder / "crash"
        make_folder(folder)
        write_file(folder / f"step_{bad.step:07d}_rank_{rank()}.json", json.dumps(known, indent=1).encode())
        saved = f"step {bad.step - 1} is saved" if bad.step else "nothing has been trained"
        return DivergedError(
            f"loss {loss} ({in_words(named)}), gradient norm {norm} at step {bad.step}; {saved}: lower optimizer.lr, "
            f"lengthen the warm-up or set pretrain.clip_norm (details in {folder})"
        )

    def room(self, best: bool) -> int:
        """Bytes still to be written at most: two encoders, the checkpoints that are kept and the one that replaces them.

        best: whether early stopping keeps the best weights too.
        """
        return bytes_to_write(self.method, self.optimizer, len(checkpoints.steps(self.folder)), best)


def bytes_to_write(method: Method, optimizer: torch.optim.Optimizer, held: int = 0, best: bool = False) -> int:
    """`Keeper.room`, for a run that has `held` checkpoints already."""
    weights = sum(t.numel() * t.element_size() for t in method.state_dict().values())
    moments = 2 if "betas" in optimizer.defaults else 1  # Adam and LAMB remember two numbers a weight
    return 2 * weights + (checkpoints.KEEP + 1 - held) * (1 + moments + best) * weights
