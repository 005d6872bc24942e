"""Work on threads, results in order. Threads are enough: Pillow and the file system release the GIL."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = 60.0  # seconds without the next result before that is told


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None = None,
    slow: Callable[[float], object] = lambda seconds: None,
) -> Iterator[Result]:
    """work(item) of every item, in order, made by `workers` threads (None: one per CPU).

    At most workers + 2 results exist at once, the one being used included. What `work` raises is raised here.
    slow: called with the seconds waited so far, each time that the next result has not come for PATIENCE more.
    """
    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:  # a reader that stops early waits for those at work
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > workers:
                yield _result(waiting.popleft(), slow)
        while waiting:
            yield _result(waiting.popleft(), slow)


def _result(future: "Future[Result]", slow: Callable[[float], object]) -> Result:
    begin = time.monotonic()
    while not wait([future], PATIENCE).done:  # no thread can be stopped: one can only say what is waited for
        slow(time.monotonic() - begin)
    return future.result()
