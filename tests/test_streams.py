"""`Images.batches`: in order, in bounded memory, and with the same stand-ins for bad images everywhere."""

import subprocess
import sys
import threading

import pytest
import torch
from fake_source import Fake, values_of

from diptych.base.errors import DataError
from diptych.base.threads import in_order
from diptych.data.images import BadImage, Images, images

# --- streams

ORDER = torch.randperm(50, generator=torch.Generator().manual_seed(0)).tolist()


def stream(found: Images, **options) -> tuple[list[int], list[int], list[int]]:
    """(indices, which images came, sizes of the batches)"""
    parts = list(found.batches(ORDER, 16, **options))
    indices = [i for used, _ in parts for i in used.tolist()]
    return indices, [c for _, pixels in parts for c in values_of(pixels)], [len(p) for _, p in parts]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("resident", [False, True])
def test_batches_come_in_order(workers, resident):
    found = images(Fake(50))
    if resident:
        found.pixels()
    assert stream(found, workers=workers) == (ORDER, ORDER, [16, 16, 16, 2])


def test_a_stream_leaves_bad_images_out_and_keeps_the_indices():
    found = images(Fake(50, [ORDER[3], ORDER[40]]))
    good = [i for i in ORDER if i not in (ORDER[3], ORDER[40])]
    assert stream(found) == (good, good, [15, 16, 15, 2])
    assert [bad["key"] for bad in found.failed] == [f"fake/{i}" for i in sorted((ORDER[3], ORDER[40]))]
    assert len(found) == 50
    with pytest.raises(BadImage, match=f"fake/{ORDER[3]}: not an image"):
        stream(images(Fake(50, [ORDER[3]]), on_bad="error"))


def test_a_bad_image_is_replaced_the_same_way_everywhere():
    bad = [ORDER[3], ORDER[40]]
    first = stream(images(Fake(50, bad)), replace=(1, 0), workers=1)
    indices, came, sizes = first
    assert came == indices and sizes == [16, 16, 16, 2] and not set(came) & set(bad)
    assert [k for k in range(50) if came[k] != ORDER[k]] == [3, 40]
    assert stream(images(Fake(50, bad)), replace=(1, 0), workers=3) == first
    assert stream(images(Fake(50, bad)), replace=(1, 1)) != first != stream(images(Fake(50, bad)), replace=(2, 0))


def test_replacements_that_are_bad_too_are_passed_over():
    found = images(Fake(50))
    tried = found.replacements(seed=1, epoch=0, index=ORDER[3])
    assert len(set(tried)) > 3 and tried == found.replacements(1, 0, ORDER[3])
    found = images(Fake(50, [ORDER[3], tried[0], tried[1]]), size=4)
    assert stream(found, replace=(1, 0))[1][3] == next(i for i in tried if i not in (ORDER[3], *tried[:2]))


def test_a_stream_of_mostly_bad_images_stops():
    with pytest.raises(DataError, match="11 of 50 images cannot be read"):
        stream(images(Fake(50, range(11)), size=4))
    found = images(Fake(50, range(3)), size=4)
    for _ in range(5):  # the same three each epoch do not add up
        stream(found, replace=(0, 0))
    assert len(found.failed) == 3


def test_threads_work_ahead_by_a_bounded_number():
    started, most = [], 0
    for used, item in enumerate(in_order(lambda k: started.append(k) or k, range(40), workers=3)):
        assert item == used
        most = max(most, len(started) - used)
    assert most <= 3 + 2


def test_a_stream_left_early_or_failing_leaves_no_threads():
    before = threading.active_count()
    stream = images(Fake(500)).batches(range(500), 4, workers=3)
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
photos = images(np.zeros((40, 512, 512, 3), np.uint8))
for _ in photos.batches(range(40), 8, workers=3):
    most = max(most, count())
print(before, most)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_threads_that_read_start_no_threads_of_their_own():
    """More threads than CPUs in torch's parallel loops, and OpenMP makes all of them slower: readers must not enter one."""
    ran = subprocess.run([sys.executable, "-c", READERS], capture_output=True, text=True, check=True)
    before, most = map(int, ran.stdout.split())
    assert most <= before + 3, "three readers and nobody else"
