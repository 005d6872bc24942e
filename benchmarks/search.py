"""How many images a second are searched for in 50,000 saved embeddings, and how long do all pairs take?

    python -m benchmarks.search --threads 1

On one thread CPU-seconds are counted, so that other programs disturb less. Queries arrive 1,000 at a time. Rivals are exact,
too, and all answers are compared before anything is timed. The embeddings are random, or in clusters and correlated as an
encoder's are.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.evaluation import clusters
from benchmarks.measure import Row, faster, goal, missing, parser, report
from diptych.base.memory import keep_freed_memory
from diptych.base.random_at import random_at
from diptych.embeddings.nearest import nearest, nearest_others

OURS, FAISS, PLAIN = "Diptych", "faiss IndexFlatIP", "torch product and topk"
WORK, QUICK = (50_000, 1000, 256), (700, 30, 16)  # bank, queries, width
K, PAIRS_SECONDS, TIMES = 10, 20, 2
SAME = 1e-4  # of cosines


def random_pair(m: int, n: int, width: int) -> tuple[Tensor, Tensor]:
    """A bank (m, E) and queries (n, E) in random directions."""
    rng = random_at("benchmark", "search")
    bank, queries = torch.randn(m, width, generator=rng), torch.randn(n, width, generator=rng)
    return F.normalize(bank, dim=1), F.normalize(queries, dim=1)


def clustered_pair(m: int, n: int, width: int) -> tuple[Tensor, Tensor]:
    """As of an encoder: ten overlapping clusters, columns correlated."""
    bank, queries = clusters(m, width, "train")[0], clusters(n, width, "test")[0]
    return F.normalize(bank, dim=1), F.normalize(queries, dim=1)


def in_turns(rivals: Mapping[str, Callable[[], object]], repeats: int, threads: int, warm_up: int = 1) -> dict:
    """As `measure.in_turns`; of one thread the CPU-seconds of this process."""
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for repeat in range(-warm_up, repeats):
        for name, work in rivals.items():
            started = clock()
            work()
            if repeat >= 0:
                seconds[name].append(clock() - started)
    return seconds


def queries_a_second(name: str, bank: Tensor, queries: Tensor, arguments: argparse.Namespace) -> None:
    answers: dict[str, Tensor] = {}

    def plain() -> Tensor:
        return (queries @ bank.T).topk(K, dim=1)[0]

    runs: dict[str, Callable[[], object]] = {
        OURS: lambda: answers.update({OURS: nearest(queries, bank, K)[0]}),
        PLAIN: lambda: answers.update({PLAIN: plain()}),
    }
    lost = missing("faiss-cpu")
    if not lost:
        import faiss

        faiss.omp_set_num_threads(arguments.threads)
        flat = faiss.IndexFlatIP(bank.shape[1])
        flat.add(bank.numpy())
        arrays = queries.numpy()
        runs[FAISS] = lambda: answers.update({FAISS: torch.from_numpy(flat.search(arrays, K)[0])})
    seconds = in_turns(runs, arguments.repeats, arguments.threads)
    for rival, cosines in answers.items():
        torch.testing.assert_close(cosines, answers[OURS], rtol=0, atol=SAME, msg=f"not the same work: {rival}")
    rows = [Row(rival, seconds[rival], len(queries), "queries/s") for rival in runs]
    notes = (
        [f"{FAISS}: {lost}"] if lost else [goal("search,", faster(rows[0], rows[-1]), TIMES, " times as fast as faiss")]
    )
    shape = f"{len(bank)} x {bank.shape[1]}"
    report("search", f"{K} nearest of {shape} {name}, {len(queries)} queries at a time", rows, OURS, arguments, notes)


def all_pairs(name: str, bank: Tensor, arguments: argparse.Namespace) -> None:
    seconds = in_turns({OURS: lambda: nearest_others(bank, K)}, max(1, arguments.repeats // 3), arguments.threads, 0)
    rows = [Row(OURS, seconds[OURS])]
    notes = [goal("all pairs,", rows[0].median, PAIRS_SECONDS / arguments.threads, " s", at_most=True)]
    report("search", f"{K} nearest others of all {len(bank)} x {bank.shape[1]} {name}", rows, "", arguments, notes)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parser("search", threads=1).parse_args(words)
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as the command line does
    for name, pair in (("random", random_pair), ("clustered", clustered_pair)):
        bank, queries = pair(*(QUICK if arguments.quick else WORK))
        queries_a_second(name, bank, queries, arguments)
        all_pairs(name, bank, arguments)


if __name__ == "__main__":
    main()
