"""The device and the number formats of a run, and the memory that is free on the device."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from diptych.base.errors import RecipeError

TRAINING_PRECISIONS = ("float32", "tf32", "bfloat16", "float64", "auto")
UNKNOWN_BYTES = 8 * 2**30  # assumed free where the system does not report its memory
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU of this process if there is one, else the CPU.

    Raises RecipeError where the GPU is absent: a run never falls back to the CPU silently.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecipeError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise RecipeError(f"device {name} was requested, but torch sees no GPU; use device=cpu or auto")
        device = torch.device("cuda", own_gpu(os.environ) if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            last = f" to cuda:{count - 1}" if count > 1 else ""
            raise RecipeError(f"device {device} was requested, but there are {count} GPUs; use cuda or cuda:0{last}")
        torch.cuda.set_device(device)
    return device


def own_gpu(env: Mapping[str, str]) -> int:
    """Which of the GPUs that this process sees is its own: by its number among the processes of this machine, or the only one
    where the system shows it no other, as with srun --gpus-per-task=1."""
    alone = torch.cuda.device_count() == 1 and env.get("CUDA_VISIBLE_DEVICES", "").isdecimal()
    return 0 if alone else int(env.get("LOCAL_RANK") or 0)


def waits_for(device: torch.device) -> bool:
    """Whether reading a number from `device` waits for all the work queued there."""
    return device.type != "cpu"


held_bytes: dict[str, int] = {}  # of a GPU, by what they hold, for the message when it has no memory left


def what_fills(most: int) -> str:
    """In words: where `most` bytes of a GPU went, as far as it is known."""
    parts = [f"{what} {size / 1e9:.1f}" for what, size in held_bytes.items()]
    remainder = most - sum(held_bytes.values())
    return ", ".join([*parts, f"the step itself {remainder / 1e9:.1f}"]) if parts and remainder > 0 else ""


def upload(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A few numbers of the CPU on `device`, without waiting for it."""
    pinned = numbers.pin_memory() if device.type == "cuda" else numbers
    return pinned.to(device, non_blocking=True)


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still allocate on `device`.

    On a GPU: what its driver reports as free. Elsewhere: the free memory of the machine, or the memory left below the
    limit of a control group (a container, a batch job) if that is less, divided by the processes of this job on the
    machine.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [_machine_bytes(PROC), *_control_group_bytes(PROC, CGROUPS)]
    return max(0, min(limits)) // local_processes(os.environ)


def own_cores() -> int:
    """The CPUs that this process may use, divided by the processes of this job on the machine; at least 1."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // local_processes(os.environ))


def local_processes(env: Mapping[str, str]) -> int:
    """The number of processes of this job on this machine, from what torchrun, `--gpus` or SLURM's srun set; else 1."""
    text = env.get("LOCAL_WORLD_SIZE") or env.get("SLURM_STEP_TASKS_PER_NODE", "")  # srun: "4(x2),3", node by node
    counts = [part.partition("(")[0] for part in text.split(",")]
    return max((int(count) for count in counts if count.isdecimal()), default=1) or 1


def _machine_bytes(proc: Path) -> int:
    """Memory that new allocations can have without swapping."""
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no Linux
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):  # macOS reports only the total
        try:
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            continue
    return UNKNOWN_BYTES


def _control_group_bytes(proc: Path, groups: Path) -> list[int]:
    """Bytes left below each memory limit: of this process's control group and of its parents (version 2 or 1)."""
    try:
        memberships = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if not controllers:
            root, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in [group, *group.parents]:
            left += _limit_leaves(folder, *names)
            if folder == root:
                break
    return left


def _limit_leaves(folder: Path, limit: str, used: str, cache: str) -> list[int]:
    """[bytes left below the limit of one group], [] if it has none. Cached files count as free: they can be dropped."""
    try:
        most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
        statistics = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    return [int(most) - now + int(statistics.get(cache, 0))] if most.isdecimal() else []
