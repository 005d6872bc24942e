"""What is here: recipes, versions, devices, room; and what a source of images would give before anything is trained."""

import importlib.util
import os
import platform
import shutil
import socket
from importlib import metadata
from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"
PACKAGES = (
    "diptych",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "safetensors",
    "pyyaml",
    "jinja2",
    "rich",
    "typer",
)
EXTRAS = {"demo": ("skimage", "sklearn"), "parquet": ("pyarrow",), "tensorboard": ("tensorboard",)}


def list_recipes() -> str:
    """Each recipe's name and the first line of its file."""
    rows = [(path.stem, path.read_text().splitlines()[0].lstrip("# ")) for path in sorted(RECIPES.glob("*.yaml"))]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {first}" for name, first in rows) + "\n\n`diptych recipes NAME` prints one."


def print_recipe(name: str) -> str:
    """A recipe's text as it stands, comments included. Raises RecipeError for an unknown name."""
    from diptych.recipe import find  # the check of names, and with it torch, only where a name was given

    return find(name).read_text().rstrip()


def examine(source: str | None = None) -> str:
    """Versions, devices, threads, room, extras and distributed back ends, a line each; then a scan of `source`."""
    import torch

    lines = [("python", f"{platform.python_version()} on {platform.platform()}")]
    lines += [(name, version(name)) for name in PACKAGES]
    lines += [("extra " + name, have(modules)) for name, modules in EXTRAS.items()]
    lines += [("cores, threads", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"),
              ("memory", memory()), ("free space here", f"{shutil.disk_usage('.').free / 1e9:.1f} GB in {Path.cwd()}"),
              ("devices", devices()), ("bfloat16", bfloat16()), ("distributed", backends()),
              ("host name", f"{socket.gethostname()} (gloo binds to its address, or GLOO_SOCKET_IFNAME's)")]  # fmt: skip
    told = [f"{name:<18} {value}" for name, value in lines]
    return "\n".join(told + ([""] + scan(source) if source else []))


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed as a package" if name == "diptych" else "not installed"


def have(modules: tuple[str, ...]) -> str:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"missing {', '.join(missing)}" if missing else "installed"


def memory() -> str:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return "unknown"
    return f"{pages / 1e9:.1f} GB, {free / 1e9:.1f} GB free"


def devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return "cpu (torch sees no GPU)"
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return "cpu, " + ", ".join(f"cuda:{i} {p.name} {p.total_memory / 1e9:.0f} GB" for i, p in enumerate(found))


def bfloat16() -> str:
    """Whether the CPU multiplies bfloat16 itself; where it does not, pretrain.precision=bfloat16 is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    found = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    return f"the CPU has {' and '.join(found)}" if found else "the CPU emulates it: prefer pretrain.precision=float32"


def backends() -> str:
    from diptych.distributed import available_backends

    return ", ".join(available_backends()) or "none"


def scan(source: str) -> list[str]:
    """What a source holds and what would be skipped, and why."""
    from collections import Counter

    from diptych.images import images
    from diptych.progress import Progress

    with Progress("scan") as progress:
        photos = images(source, size=32, progress=progress)
        total = len(photos)
        photos.pixels()
    lines = [f"{source}: {total - len(photos.failed)} of {total} images can be read"]
    if photos.classes:
        counts = Counter(photos.labels)
        lines.append(
            f"  {len(photos.classes)} classes: "
            + ", ".join(f"{n} ({counts[i]})" for i, n in enumerate(photos.classes[:20]))
        )
    reasons = Counter(row["reason"] for row in photos.failed)
    lines += [f"  {count} skipped: {reason}" for reason, count in reasons.most_common()]
    lines += [f"    {row['key']}: {row['reason']}" for row in photos.failed[:20]]
    return lines
