"""What is here: recipes, versions, devices, room; and what a source of images would give before anything is trained."""

import importlib.util
import os
import platform
import re
import shutil
import socket
from importlib import metadata
from pathlib import Path

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


def examine(source: str | None = None, hashes: Path | None = None) -> str:
    """Versions, devices, threads, room, extras and distributed back ends, a line each; then a scan of `source`.

    Raises RecipeError for `hashes` without a source, and what `scan` raises.
    """
    import torch

    from diptych.base.errors import RecipeError

    if hashes and not source:
        raise RecipeError(f"--hash {hashes} notes the content of images: name their SOURCE")

    lines = [("python", f"{platform.python_version()} on {platform.platform()}")]
    lines += [(name, version(name)) for name in PACKAGES]
    lines += [("extra " + name, have(modules)) for name, modules in EXTRAS.items()]
    lines += [("cores, threads", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"),
              ("memory", memory()), ("free space here", f"{shutil.disk_usage('.').free / 1e9:.1f} GB in {Path.cwd()}"),
              ("devices", devices()), ("bfloat16", bfloat16()), ("distributed", backends()),
              ("host name", f"{socket.gethostname()} (gloo binds to its address, or GLOO_SOCKET_IFNAME's)")]  # fmt: skip
    told = [f"{name:<18} {value}" for name, value in lines]
    return "\n".join(told + ([""] + scan(source, hashes) if source else []))


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
    from diptych.base.processes import available_backends

    return ", ".join(available_backends()) or "none"


def scan(source: str, hashes: Path | None = None) -> list[str]:
    """What a source holds, what would be skipped and why, what is read but changed; with `hashes`, what has new content.

    Every image is read as in training, on all cores; nothing is kept of it. Raises DataError for a source that cannot
    be opened, and OutputError.
    """
    from collections import Counter

    from diptych.base.terminal import ProgressBar
    from diptych.base.threads import in_order
    from diptych.data.decode import MAX_PIXELS
    from diptych.data.images import open_source
    from diptych.data.labels import all_labels
    from diptych.data.squares import Squares
    from diptych.data.unreadable import too_many

    found = open_source(source)
    numbers, classes = all_labels(found)
    squares, total = Squares(found, 32, MAX_PIXELS, "white", "crop"), len(found)
    bad, readable, changes, digests = [], Counter(), {}, {}
    with ProgressBar("scan", total) as progress:
        for row, (reason, remarks, digest) in enumerate(in_order(lambda row: look(squares, row, hashes), range(total))):
            key = found.key(row)
            if reason:
                bad.append(f"    {key}: {reason}")
            elif numbers:
                readable[numbers[row]] += 1
            for remark in remarks:
                changes.setdefault(remark, []).append(key)
            digests |= {key: digest} if digest else {}
            progress(row + 1)
    lines = [f"{source}: {total - len(bad):,} of {total:,} images can be read"]
    if classes:
        shown = ", ".join(f"{name} ({readable[number]:,})" for number, name in enumerate(classes[:20]))
        lines.append(f"  {len(classes)} classes: {shown}" + (", ..." if len(classes) > 20 else ""))
    if bad:
        what = "too many, training would stop" if too_many(len(bad), total) else "training would go on without them"
        lines += [f"  {len(bad):,} cannot be read ({what}):", *bad]
    if skipped := getattr(found, "skipped", ()):
        lines += [f"  {len(skipped):,} entries are left out:", *(f"    {s['key']}: {s['reason']}" for s in skipped)]
    lines += [f"  {len(keys):,} with {remark} (first: {keys[0]})" for remark, keys in changes.items()]
    return lines if hashes is None else lines + compare(hashes, digests)


def look(squares, row: int, hashes: Path | None) -> tuple[str | None, list[str], str]:
    """(why one image cannot be read, or None; what is changed in reading it; the sha256 of its bytes, if wanted)."""
    from diptych.data.decode import BadImage, remarks
    from diptych.data.source import digest

    content = ""
    try:
        data = squares.read(row)
        content = digest(data) if hashes else ""
        squares.square(row, data)
    except BadImage as error:
        return error.reason, [], content
    return None, remarks(data) if isinstance(data, bytes) else [], content


def compare(file: Path, digests: dict[str, str]) -> list[str]:
    """What has other content than `file` says (lines as of sha256sum); without such a file, it is written.

    Damage that decodes to a picture all the same shows in no other way. Raises DataError for a file that is no such list.
    """
    from diptych.base.errors import DataError
    from diptych.base.files import write_file

    if not file.exists():
        write_file(file, "".join(f"{digest}  {key}\n" for key, digest in digests.items()).encode())
        return [
            f"  the content of {len(digests):,} images is noted in {file}: the same command tells later what changed"
        ]
    try:
        known = {line[66:]: line[:64] for line in file.read_text("utf-8").split("\n") if line}
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is no list of hashes ({error}): remove it, or name another file") from error
    if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in known.values()):
        raise DataError(f"{file} is no list of hashes: remove it, or name another file")
    told = {
        "changed": [key for key in digests if digests[key] != known.get(key, digests[key])],
        "new": [key for key in digests if key not in known],
        "gone or unreadable": [key for key in known if key not in digests],
    }
    same = sum(digests[key] == known.get(key) for key in digests)
    counts = ", ".join(f"{len(keys):,} {what}" for what, keys in told.items())
    return [f"  beside {file}: {same:,} with the same content, {counts}"] + [
        f"    {what}: {key}" for what, keys in told.items() for key in keys
    ]
