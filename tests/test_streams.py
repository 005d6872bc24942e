"""`Images.read`: in order, in bounded memory, and with the same stand-ins for bad images everywhere."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_source import Fake, values_of, write

from diptych.base import device
from diptych.base.errors import DataError, RecipeError
from diptych.base.threads import in_order
from diptych.data.images import BadImage, Images, images
from diptych.data.source import digest

# --- streams, and the same from memory

ORDER = torch.randperm(50, generator=torch.Generator().manual_seed(0)).tolist()
both = pytest.mark.parametrize("resident", [False, True])


def stream(photos: Images, **options) -> tuple[list[int], list[int], list[int]]:
    """(indices, which images came, sizes of the batches)"""
    parts = list(photos.read(ORDER, 16, **options))
    indices = [i for rows, _ in parts for i in rows.tolist()]
    return indices, [c for _, pixels in parts for c in values_of(pixels)], [len(p) for _, p in parts]


@pytest.mark.parametrize("workers", [1, 3])
@both
def test_batches_come_in_order(workers, resident):
    photos = images(Fake(50), resident=resident)
    assert stream(photos, workers=workers) == (ORDER, ORDER, [16, 16, 16, 2])
    assert photos.resident is resident and (photos._decoded is not None) is resident
    for order in (torch.tensor([3, 1]), np.array([3, 1]), range(3, 0, -2)):
        [(rows, pixels)] = photos.read(order, 5, device="cpu")
        assert rows.dtype == torch.int64 and rows.tolist() == [3, 1] == values_of(pixels)
    assert list(photos.read([], 5)) == [] == list(photos.subset([]).read([], 5))


@both
def test_bad_images_are_left_out_and_the_indices_stay(resident):
    photos = images(Fake(50, [ORDER[3], ORDER[40]]), resident=resident)
    good = [i for i in ORDER if i not in (ORDER[3], ORDER[40])]
    assert stream(photos) == (good, good, [15, 16, 15, 2])
    assert [bad["key"] for bad in photos.failed] == [f"fake/{i}" for i in sorted((ORDER[3], ORDER[40]))]
    assert len(photos) == 50
    with pytest.raises(BadImage, match=f"fake/{ORDER[3]}: not an image"):
        photos.load(ORDER[3])
    with pytest.raises(BadImage, match=f"fake/{ORDER[3]}: not an image"):
        stream(images(Fake(50, [ORDER[3]]), on_bad="error", resident=resident))
    photos.prepare()
    assert len(photos) == (48 if resident else 50)


@both
def test_a_bad_image_is_replaced_the_same_way_everywhere(resident):
    bad = [ORDER[3], ORDER[40]]

    def replaced(seed: int, epoch: int, **options) -> tuple:
        return stream(images(Fake(50, bad), resident=resident), replace=(seed, epoch), **options)

    first = replaced(1, 0, workers=1)
    indices, came, sizes = first
    assert came == indices and sizes == [16, 16, 16, 2] and not set(came) & set(bad)
    assert [k for k in range(50) if came[k] != ORDER[k]] == [3, 40]
    assert replaced(1, 0, workers=3) == first == stream(images(Fake(50, bad), resident=not resident), replace=(1, 0))
    assert replaced(1, 1) != first != replaced(2, 0)


@both
def test_replacements_that_are_bad_too_are_passed_over(resident):
    photos = images(Fake(50))
    tried = photos.replacements(seed=1, epoch=0, index=ORDER[3])
    assert len(set(tried)) > 3 and tried == photos.replacements(1, 0, ORDER[3])
    photos = images(Fake(50, [ORDER[3], tried[0], tried[1]]), size=4, resident=resident)
    assert stream(photos, replace=(1, 0))[1][3] == next(i for i in tried if i not in (ORDER[3], *tried[:2]))


@both
def test_a_stream_of_mostly_bad_images_stops(resident):
    with pytest.raises(DataError, match="11 of 50 images cannot be read"):
        stream(images(Fake(50, range(11)), size=4, resident=resident))
    photos = images(Fake(50, range(3)), size=4, resident=resident)
    for _ in range(5):  # the same three each epoch do not add up
        stream(photos, replace=(0, 0))
    assert len(photos.failed) == 3


def test_threads_work_ahead_by_a_bounded_number():
    started, most = [], 0
    for used, item in enumerate(in_order(lambda k: started.append(k) or k, range(40), workers=3)):
        assert item == used
        most = max(most, len(started) - used)
    assert most <= 3 + 2


def test_a_stream_left_early_or_failing_leaves_no_threads():
    before = threading.active_count()
    stream = images(Fake(500), resident=False).read(range(500), 4, workers=3)
    next(stream)
    stream.close()
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda k: 1 // (3 - k), range(9), workers=2))
    assert threading.active_count() == before


READERS = """
import os
import numpy as np
import torch
from diptych.data.images import images

torch.set_num_threads(4)
torch.zeros(10_000_000).add_(1)  # the main thread's own team
count = lambda: len(os.listdir("/proc/self/task"))
before, most = count(), 0
photos = images(np.zeros((40, 512, 512, 3), np.uint8), resident=False)
for _ in photos.read(range(40), 8, workers=3):
    most = max(most, count())
print(before, most)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_threads_that_read_start_no_threads_of_their_own():
    """More threads than CPUs in torch's parallel loops, and OpenMP makes all of them slower: readers must not enter one."""
    ran = subprocess.run([sys.executable, "-c", READERS], capture_output=True, text=True, check=True)
    before, most = map(int, ran.stdout.split())
    assert most <= before + 3, "three readers and nobody else"


# --- who is resident

GIB = 2**30
CPU = torch.device("cpu")


class Counting(Fake):
    """Counts what is read, and how often the names are."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.reads = self.names = 0

    def read(self, i: int) -> bytes:
        self.reads += 1
        return super().read(i)

    def key(self, i: int) -> str:
        self.names += 1
        return super().key(i)


@pytest.mark.parametrize(("free", "fits"), [(2 * 40 * 48, True), (2 * 40 * 48 - 1, False)])
def test_residency_asks_the_machine_once(free, fits, monkeypatch):
    monkeypatch.setattr("diptych.data.resident.free_bytes", lambda device: free)
    source = Counting(40)
    photos = images(source, size=4)
    assert photos.resident is fits
    monkeypatch.setattr("diptych.data.resident.free_bytes", lambda device: 0 if fits else 2**60)
    for _ in range(2):  # whatever becomes of the memory, the decision stands
        assert values_of(next(photos.read(range(40), 40))[1]) == list(range(40))
    assert photos.resident is fits and source.reads == (40 if fits else 80)
    assert photos.subset(range(39)).resident  # a set of its own, or in memory already


def test_a_set_of_any_size_is_streamed_above_the_bound(monkeypatch):
    monkeypatch.setattr("diptych.data.resident.free_bytes", lambda device: 2**60)
    monkeypatch.setattr("diptych.data.resident.MOST_BYTES", 40 * 48)
    assert images(Fake(40), size=4).resident and not images(Fake(41), size=4).resident


def test_residency_can_be_chosen(monkeypatch):
    monkeypatch.setattr("diptych.data.resident.free_bytes", lambda device: 0)
    assert images(Fake(3), resident=True).resident and not images(Fake(3), resident=False).subset([0]).resident
    with pytest.raises(RecipeError, match="resident is 'maybe'; it must be auto, true or false"):
        images(Fake(3), resident="maybe")
    photos = images(Fake(3), resident=False)
    photos.prepare()
    assert not photos.resident
    assert values_of(photos.pixels()) == [0, 1, 2] and photos.resident  # as asked for in so many words


def test_prepare_reads_a_resident_set_once_and_a_stream_never():
    for resident, reads in ((True, 20), (False, 0)):
        source = Counting(20, [3])
        photos = images(source, size=4, resident=resident)
        photos.prepare()
        photos.prepare()
        assert source.reads == reads and len(photos) == (19 if resident else 20)


def test_a_subset_shares_what_is_decoded():
    source = Counting(20, [3])
    photos = images(source, size=4)
    before = photos.subset([2, 3])
    assert [len(rows) for rows, _ in photos.read(range(20), 20)] == [19]  # 3 is left out, and keeps its row
    with_bad, good = photos.subset([2, 3]), photos.subset([5, 2, 5])
    assert good._decoded is photos._decoded and source.reads == 20
    assert values_of(good.pixels()) == [5, 2, 5] == [int(values_of(good.load(i)[None])[0]) for i in range(3)]
    assert values_of(good.subset([1]).pixels()) == [2] and good.failed == [] and source.reads == 20
    for part in (before, with_bad):  # each finds its bad image itself
        part.prepare()
        assert len(part) == 1 and part.failed[0]["key"] == "fake/3"
    assert source.reads == 24


def test_a_fingerprint_is_computed_once(monkeypatch, tmp_path):
    array = np.zeros((3, 4, 4, 3), np.uint8)
    np.save(tmp_path / "photos.npy", array)
    write(tmp_path / "folder", "a/1.png", "b/2.png")
    hashed = []

    def counted(*parts):
        hashed.append(len(parts))
        return digest(*parts)

    for module in ("arrays", "source", "images"):
        monkeypatch.setattr(f"diptych.data.{module}.digest", counted)
    for source in (array, tmp_path / "photos.npy", tmp_path / "folder"):
        photos = images(source)
        marks = {photos.fingerprint for _ in range(3)}
        assert len(marks) == len(hashed) == 1, source
        part = photos.subset([1])
        assert len({part.fingerprint for _ in range(3)} - marks) == 1
        assert len(hashed) == 2, "of the subset, only its rows"
        hashed.clear()
    source = Counting(5)
    photos = images(source, size=4)
    assert len({photos.fingerprint for _ in range(3)}) == 1 and source.names == 5


# --- a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["copied", "batch by batch", "streamed"])
def test_a_gpu_gets_the_same_batches(way, monkeypatch):
    if way == "batch by batch":
        monkeypatch.setattr("diptych.data.resident.GPU_SHARE", 0.0)
    photos = images(Fake(50, [7]), size=4, resident=way != "streamed")
    photos.prepare()
    order = range(len(photos))
    for _ in range(2):
        pairs = zip(photos.read(order, 16, device="cuda"), photos.read(order, 16), strict=True)
        for (rows, there), (same, here) in pairs:
            assert there.is_cuda and torch.equal(there.cpu(), here) and torch.equal(rows, same)


# --- what is free


def machine(place: Path, available: int, membership: str = "", **files: str) -> None:
    """A /proc and a /sys/fs/cgroup in `place`; files: path with __ for /, and its text."""
    (place / "proc" / "self").mkdir(parents=True)
    (place / "proc" / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available // 1024} kB\n")
    (place / "proc" / "self" / "cgroup").write_text(membership)
    for name, text in files.items():
        path = place / "groups" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


LIMITED = {
    "memory.max": f"{8 * GIB}\n",
    "memory.current": f"{6 * GIB}\n",
    "memory.stat": f"anon 1\ninactive_file {GIB}\n",
}
FREE = {"memory.max": "max\n", "memory.current": f"{6 * GIB}\n", "memory.stat": "anon 1\n"}
OLD = {"memory.limit_in_bytes": f"{4 * GIB}\n", "memory.usage_in_bytes": f"{GIB}\n",
       "memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB // 2}\n"}  # fmt: skip


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("", {}, 16),
        ("0::/\n", LIMITED, 3),
        ("0::/job/step\n", {f"job__{name}": text for name, text in LIMITED.items()}, 3),  # the limit of a parent
        ("0::/job\n", {f"job__{name}": text for name, text in FREE.items()}, 16),
        ("0::/job\n", {"job__memory.max": "damaged", "job__memory.current": "?"}, 16),
        ("5:cpu:/x\n4:hugetlb,memory:/job\n", {f"memory__job__{name}": text for name, text in OLD.items()}, 3.5),
    ],
)
def test_free_memory_is_the_machines_or_what_a_limit_leaves(membership, files, expected, tmp_path, monkeypatch):
    machine(tmp_path, 16 * GIB, membership, **files)
    monkeypatch.setattr(device, "PROC", tmp_path / "proc")
    monkeypatch.setattr(device, "CGROUPS", tmp_path / "groups")
    for name in ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    assert device.free_bytes(CPU) == expected * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device.free_bytes(CPU) == expected * GIB / 4


def test_free_memory_without_linux(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "PROC", tmp_path / "nowhere")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    known = {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(device.os, "sysconf", lambda name: known[name] if name in known else int("no such name"))
    assert device.free_bytes(CPU) == 409600
    known.clear()
    assert device.free_bytes(CPU) == device.UNKNOWN_BYTES


@pytest.mark.parametrize(
    ("env", "count"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "8"}, 8),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3),4"}, 4),
        ({"LOCAL_WORLD_SIZE": "0"}, 1),
    ],
)
def test_processes_of_a_machine(env, count):
    assert device.local_processes(env) == count


def test_free_memory_of_this_machine():
    assert 0 < device.free_bytes(CPU) < 2**50
