"""Checkpoints that survive a kill: written to a temporary folder, flushed, hashed, renamed; loaded only if every hash
agrees.

A checkpoint is a folder `step_0000120/` with tensors (safetensors, never pickle), `state.json` (numbers and strings) and
`manifest.json` (sha256 of every other file). A folder of that name is always complete: it appears by one rename.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from diptych.base.errors import CheckpointError
from diptych.base.files import disk_error, flush_folder, read_object, read_plain, write_file

KEEP = 2  # the newest, and one to fall back to
STEP = re.compile(r"step_(\d{7,})")
FORMAT = 1  # of the folder; another one is refused, not misread


def save(folder: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict, keep: int = KEEP) -> Path:
    """Save one checkpoint atomically and delete all but the `keep` newest.

    `tensors` maps a file's stem to its named tensors, `state` is any JSON. Raises OutputError when the disk is full or
    read-only: the earlier checkpoints are then untouched.
    """
    checkpoint, temporary = folder / f"step_{step:07d}", folder / f".step_{step:07d}.tmp-{os.getpid()}"
    files = {f"{name}.safetensors": safetensors.torch.save(plain(group)) for name, group in tensors.items()}
    files["state.json"] = json.dumps({"step": step, **state}, indent=1).encode()
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files["manifest.json"] = json.dumps({"format": FORMAT, "sha256": hashes}, indent=1).encode()
    replaced = folder / f".step_{step:07d}.tmp-{os.getpid()}-old"  # like the other, deleted by `clear` after a kill
    for leftover in (temporary, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, data in files.items():
            write_file(temporary / name, data)
        if checkpoint.exists():  # of the same step: broken, or saved again because the run has ended
            os.replace(checkpoint, replaced)
        os.replace(temporary, checkpoint)
        shutil.rmtree(replaced, ignore_errors=True)
        flush_folder(folder)
    except OSError as error:
        raise disk_error(checkpoint, sum(map(len, files.values())), error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_file(folder / "last", checkpoint.name.encode())
    if fault(checkpoint) is None:
        # Those of later steps are broken, as the run has resumed before them: none may take the place of a good one.
        all_steps = steps(folder)
        newest_good = all_steps[: all_steps.index(checkpoint) + 1][-keep:]
        for old in set(all_steps) - set(newest_good):
            shutil.rmtree(old, ignore_errors=True)
    return checkpoint


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, contiguous and without shared storage, for safetensors (channels_last weights are not)."""
    return {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}


def steps(folder: Path) -> list[Path]:
    """The checkpoint folders, oldest first: ordered by step, not by time. Copies under other names are the user's."""
    numbered = {path: int(match[1]) for path in folder.glob("step_*") if (match := STEP.fullmatch(path.name))}
    return sorted((path for path in numbered if path.is_dir()), key=numbered.__getitem__)


def fault(checkpoint: Path) -> str | None:
    """The reason why a checkpoint folder cannot be used; None when every file has the hash in the manifest."""
    try:
        manifest = read_object(checkpoint / "manifest.json")
        if manifest["format"] != FORMAT:
            return f"it has format {manifest['format']!r}, this version of diptych reads {FORMAT}"
        hashes = manifest["sha256"]
        for name, expected in hashes.items():
            if hashlib.sha256(read_plain(checkpoint / Path(name).name)).hexdigest() != expected:
                return f"{name} is damaged (its hash has changed)"
    except CheckpointError as error:
        return str(error).removeprefix(f"{checkpoint}/").removesuffix("; restore it")
    except (KeyError, TypeError, AttributeError):
        return "manifest.json is damaged"
    return None


def clear(folder: Path) -> None:
    """Delete what a process that was killed while saving has left, or finish it. For the process that holds the run."""
    for stray in folder.glob(".step_*.tmp-*"):
        checkpoint = folder / stray.name[1:].split(".")[0]
        if stray.name.endswith("-old") and not checkpoint.exists():
            os.replace(stray, checkpoint)  # killed between the two renames
        else:
            shutil.rmtree(stray, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The newest intact checkpoint, None when there is no checkpoint. Warns of every broken one that it skips.

    Changes nothing: the run may be saving. Raises CheckpointError when there are checkpoints and all are broken: starting
    over silently would lose a run.
    """
    candidates = steps(folder)
    for checkpoint in reversed(candidates):
        reason = fault(checkpoint)
        if reason is None:
            return checkpoint
        warnings.warn(f"{checkpoint}: {reason}; looking for an older checkpoint", stacklevel=2)
    if candidates:
        raise CheckpointError(f"no checkpoint in {folder} is intact; restore one, or start over with --overwrite")
    return None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file. Raises CheckpointError naming the file."""
    try:
        if os.path.lexists(path) and not path.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{path} is not a file; restore it")
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error})") from None


def read_state(checkpoint: Path) -> dict:
    """The JSON state of a checkpoint that `newest` has verified. Raises CheckpointError where there is none."""
    return read_object(checkpoint / "state.json")


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict]:
    """The state of an optimizer as named tensors and a JSON remainder, both without pickle."""
    state = optimizer.state_dict()
    entries = {f"{index}.{name}": value for index, entry in state["state"].items() for name, value in entry.items()}
    tensors = {name: value for name, value in entries.items() if isinstance(value, Tensor)}
    values = {name: value for name, value in entries.items() if not isinstance(value, Tensor)}
    groups = []
    for index, group in enumerate(state["param_groups"]):
        groups.append({k: v for k, v in group.items() if k != "params" and not isinstance(v, Tensor)})
        tensors |= {f"group {index}.{k}": v for k, v in group.items() if isinstance(v, Tensor)}  # LAMB's step
    return tensors, {"values": values, "groups": groups}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], remainder: dict) -> None:
    """Load what `pack_optimizer` returned into a new optimizer over the same parameters."""
    current = optimizer.state_dict()["param_groups"]
    groups = [merge(old, new) for old, new in zip(current, remainder["groups"], strict=True)]
    state: dict[int, dict] = {}
    for key, value in {**tensors, **remainder["values"]}.items():
        owner, name = key.split(".", 1)
        if owner.startswith("group "):
            groups[int(owner.removeprefix("group "))][name] = value
        else:
            state.setdefault(int(owner), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def merge(old: dict, new: dict) -> dict:
    """A parameter group with the saved numbers; its tuples (Adam's betas) are lists in JSON."""
    return {**old, **{k: tuple(v) if isinstance(old.get(k), tuple) else v for k, v in new.items()}}


def load_exactly(
    module: torch.nn.Module, tensors: dict[str, Tensor], source: Path | str, missing: Iterable[str] = ()
) -> None:
    """Load named tensors into a module. Raises CheckpointError with the keys that differ, except `missing`."""
    own = module.state_dict()
    absent = sorted(set(own) - set(tensors) - set(missing))
    extra = sorted(set(tensors) - set(own))
    wrong = sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape)
    if absent or extra or wrong:
        differences = [
            f"{word} {', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''} ({len(keys)})"
            for word, keys in (("missing", absent), ("unexpected", extra), ("of another shape", wrong))
            if keys
        ]
        raise CheckpointError(f"{source} does not fit this network: {'; '.join(differences)}")
    module.load_state_dict(tensors, strict=False)
