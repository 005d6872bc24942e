"""`diptych doctor`: versions, devices and free space; and a check of a source of images before training."""

import importlib.util
import os
import platform
import re
import shutil
import socket
from importlib import metadata
from pathlib import Path

# Beside those that a run records (`runs.environment.RECORDED_PACKAGES`): these change no number.
OTHER_PACKAGES = ("pyyaml", "jinja2", "rich", "typer")
EXTRAS = {"demo": ("skimage", "sklearn"), "parquet": ("pyarrow",), "tensorboard": ("tensorboard",)}


def examine(source: str | None = None, hashes: Path | None = None) -> str:
    """Lines with versions, extras, threads, memory, devices and distributed back ends; then the scan of `source`.

    Raises RecipeError for `hashes` without a source, and what `scan` raises.
    """
    import torch

    from diptych.base.errors import RecipeError
    from diptych.base.terminal import counted
    from diptych.runs.environment import RECORDED_PACKAGES

    if hashes and not source:
        raise RecipeError(f"--hash {hashes} writes or compares the sha256 of images: name their SOURCE")

    lines = [("python", f"{platform.python_version()} on {platform.platform()}")]
    lines += [(name, installed_version(name)) for name in (*RECORDED_PACKAGES, *OTHER_PACKAGES)]
    lines += [("extra " + name, installed_or_missing(modules)) for name, modules in EXTRAS.items()]
    lines += [("cores, threads", f"{os.cpu_count()} cores, torch uses {counted(torch.get_num_threads(), 'thread')}"),
              ("memory", memory()), ("free space here", f"{shutil.disk_usage('.').free / 1e9:.1f} GB in {Path.cwd()}"),
              ("devices", devices()), ("bfloat16", bfloat16()), ("distributed", backends()),
              ("host name", f"{socket.gethostname()} (gloo binds to its address, or GLOO_SOCKET_IFNAME's)")]  # fmt: skip
    text = [f"{name:<18} {value}" for name, value in lines]
    if source:
        text += [
            "",
            *scan(source, hashes),
            f"next: diptych plan {source} (a proposal for these images, with its time and memory)",
        ]
    return "\n".join(text)


def installed_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed as a package" if name == "diptych" else "not installed"


def installed_or_missing(modules: tuple[str, ...]) -> str:
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
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return "cpu, " + ", ".join(f"cuda:{i} {p.name} {p.total_memory / 1e9:.0f} GB" for i, p in enumerate(gpus))


def bfloat16() -> str:
    """What bfloat16 gains on this CPU, measured now and remembered for `auto`. Instructions for it alone do not decide."""
    from diptych.base.arithmetic import GAIN, MEASURED, bfloat16_gain
    from diptych.base.machine import remembered

    gain = remembered(MEASURED, bfloat16_gain, again=True)
    better = "bfloat16" if gain > GAIN else "float32"
    return f"{gain:.2f} times the speed of float32 on this CPU: pretrain.precision=auto selects {better}"


def backends() -> str:
    from diptych.base.processes import available_backends

    return ", ".join(available_backends()) or "none"


def scan(source: str, hashes: Path | None = None) -> list[str]:
    """Counts of images and classes, the images that cannot be read, and those that reading changes.

    With `hashes`, the images' sha256 is written to that file or compared with it. Images are read as in training, on
    all cores, and are not kept in memory. Raises DataError for a source that cannot be opened,
    OutputError where `hashes` cannot be written.
    """
    from collections import Counter

    from diptych.base.terminal import ProgressBar
    from diptych.base.threads import in_order
    from diptych.data.decode import MAX_PIXELS
    from diptych.data.glance import glance
    from diptych.data.images import Images, open_source
    from diptych.data.labels import all_labels
    from diptych.data.squares import Squares
    from diptych.data.unreadable import reasons_in_words, too_many

    images = open_source(source)
    numbers, classes = all_labels(images)
    squares, total = Squares(images, 32, MAX_PIXELS, "white", "crop"), len(images)
    photos = Images(squares, None, None)
    bad, readable, changes, digests = [], Counter(), {}, {}
    with ProgressBar("scan", total) as progress:
        examined = in_order(lambda row: examine_image(squares, row, hashes), range(total))
        for row, (reason, remarks, digest) in enumerate(examined):
            key = images.key(row)
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
    lines.append(f"  {glance(photos)}")
    if bad:
        effect = (
            "too many, training would stop" if too_many(len(bad), total) else "training would continue without them"
        )
        lines += [f"  {len(bad):,} cannot be read ({effect}):", *bad]
    if skipped := getattr(images, "skipped", ()):
        lines.append(f"  {len(skipped):,} entries are left out: {reasons_in_words(skipped)}")
        lines += [f"    {entry['key']}: {entry['reason']}" for entry in skipped]
    lines += [f"  {len(keys):,} with {remark} (first: {keys[0]})" for remark, keys in changes.items()]
    return lines if hashes is None else lines + compare_hashes(hashes, digests)


def examine_image(squares, row: int, hashes: Path | None) -> tuple[str | None, list[str], str]:
    """The reason why an image is unreadable (or None), what reading changes in it, its sha256 ("" without `hashes`)."""
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


def compare_hashes(file: Path, digests: dict[str, str]) -> list[str]:
    """Lines about the images whose sha256 differs from `file`; without it, it is written in the format of sha256sum.

    Only this finds damaged images that still decode. Raises DataError for a file in another format.
    """
    from diptych.base.errors import DataError
    from diptych.base.files import write_file

    if not file.exists():
        write_file(file, "".join(f"{digest}  {key}\n" for key, digest in digests.items()).encode())
        done = f"the hashes of {len(digests):,} images are saved in {file}"
        return [f"  {done}: run the same command again to see what has changed since"]
    if not file.is_file():
        raise DataError(f"{file} is not a list of hashes, nor a file: name another one")
    try:
        known = {line[66:]: line[:64] for line in file.read_text("utf-8").split("\n") if line}
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is not a list of hashes ({error}): remove it, or name another file") from error
    if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in known.values()):
        raise DataError(f"{file} is not a list of hashes: remove it, or name another file")
    differences = {
        "changed": [key for key in digests if digests[key] != known.get(key, digests[key])],
        "new": [key for key in digests if key not in known],
        "gone or unreadable": [key for key in known if key not in digests],
    }
    same = sum(digests[key] == known.get(key) for key in digests)
    counts = ", ".join(f"{len(keys):,} {difference}" for difference, keys in differences.items())
    return [f"  compared with {file}: {same:,} with the same content, {counts}"] + [
        f"    {difference}: {key}" for difference, keys in differences.items() for key in keys
    ]
