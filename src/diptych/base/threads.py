"""Work in threads, results in order. Threads suffice: Pillow and the file system release the GIL."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from diptych.base.device import own_cores

Item = TypeVar("Item")
Result = TypeVar("Result")
SLOW_SECONDS = 60.0  # without the next result before `slow` is called


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None = None,
    slow: Callable[[float], object] = lambda seconds: None,
) -> Iterator[Result]:
    """Yield work(item) for every item, in order, computed by `workers` threads (None: one per CPU that this process
    has for itself, see `own_cores`).

    At most workers + 2 results exist at once, including the one in use. What `work` raises is raised here.
    slow: called with the seconds waited so far, every SLOW_SECONDS without the next result.
    """
    workers = workers or own_cores()
    with ThreadPoolExecutor(workers) as pool:  # leaving it early waits for the tasks that have begun
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > workers:
                yield _result(waiting.popleft(), slow)
        while waiting:
            yield _result(waiting.popleft(), slow)


def _result(future: "Future[Result]", slow: Callable[[float], object]) -> Result:
    begin = time.monotonic()
    while not wait([future], SLOW_SECONDS).done:  # a thread cannot be stopped: `slow` can only report it
        slow(time.monotonic() - begin)
    return future.result()
