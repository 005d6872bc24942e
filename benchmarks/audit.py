"""Does an audit find what is there, and does it know how often it is wrong?

    python -m benchmarks.audit --data FOLDER [--parts planted demo labels neighbours pick speed] [--keep FOLDER]

FOLDER holds CIFAR-10 in the Hugging Face layout: cifar10-lossless-subset-{train,test}.parquet (5,170 and 1,017 pixel-exact
rows) and cifar10-jpeg-{train,test}.parquet (all rows, JPEG-75). Vectors are those of `diptych quick`. Nothing is chosen here:
thresholds come from made scenes (tests/scenes.py).

planted, demo: copies of 500 images (or a fifth) in CIFAR-10's lossless subset and among squares of the demo's photographs that
do not overlap: exact, resized, encoded again, mirrored, cropped; recall and precision beside imagededup's pHash and dHash.
labels: a share of wrong labels; average precision beside cleanlab's self-confidence. neighbours: CIFAR-10's own test-train
copies; --sheet FILE draws the first 100. pick: a linear head on picked and on random labels. speed: all pairs of 50,000 x 256.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import diptych
from benchmarks.audit_planted import KINDS, apart_squares, hash_pairs, plant
from benchmarks.measure import commit, machine, parser
from diptych.data.images import Images
from diptych.data.photographs import demo_source
from diptych.downstream.copies import find_copies
from diptych.downstream.leaks import near_pairs
from diptych.embeddings.duplicates import Pairs, near_duplicates
from diptych.embeddings.label_errors import probe_probabilities, suspects_of, vote_probabilities
from diptych.embeddings.nearest import nearest_others
from diptych.embeddings.paired import paired_difference
from diptych.embeddings.picking import pick
from diptych.embeddings.probe import fit_probe
from diptych.runs.encoder import Trained

LOSSLESS, JPEG = "cifar10-lossless-subset", "cifar10-jpeg"
SHARES, BUDGETS, SEEDS, SHOWN, POOL = (0.02, 0.05, 0.1), (100, 500), 10, 100, 2_000


def main() -> None:
    known = parser("audit", threads=1)
    known.add_argument("--data", type=Path, help="folder of CIFAR-10's Parquet files")
    known.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    known.add_argument("--keep", type=Path, help="folder in which the encoder and the vectors are kept between runs")
    known.add_argument("--sheet", type=Path, help="PNG of the first pairs of `neighbours`")
    arguments = known.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.parts:
        started = time.process_time()
        result = PARTS[name](arguments) | {"cpu_seconds": round(time.process_time() - started, 1)}
        print(name, json.dumps(result, indent=1)[:3000], flush=True)
        write(name, result, arguments)


def write(name: str, result: dict, arguments: argparse.Namespace) -> None:
    """Add a part to the results, beside the others."""
    if arguments.quick:
        return
    path = arguments.out / f"audit-{arguments.device}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = result | {"commit": commit(), "machine": machine()}
    path.write_text(json.dumps(results, indent=1) + "\n")


def encoder_and_set(arguments: argparse.Namespace, name: str) -> tuple[Trained, Tensor, Tensor, list[int]]:
    """The closed form of the lossless training rows, and of a set its vectors, pixels and labels."""
    keep = arguments.keep
    place = keep / "quick-cifar" if keep else None
    if place is not None and place.exists():
        trained = diptych.load(place)
    else:
        trained = diptych.quick(read(arguments, f"{LOSSLESS}-train"), out=place, show=False)
    file = keep / f"{name}.pt" if keep else None
    if file is not None and file.exists():
        vectors, pixels, labels = torch.load(file, weights_only=True)
        return trained, vectors.float(), pixels, labels
    photos = read(arguments, name)
    vectors, pixels, labels = diptych.embed(trained, photos, show=False), photos.pixels(), list(photos.labels or ())
    if file is not None:
        torch.save((vectors.half(), pixels, labels), file)
    return trained, vectors, pixels, labels


def read(arguments: argparse.Namespace, name: str) -> Images:
    return diptych.images(arguments.data / f"{name}.parquet", size=32)


def planted(arguments: argparse.Namespace) -> dict:
    """In CIFAR-10's lossless subset: 5,170 images and 500 copies."""
    trained, vectors, pixels, _ = encoder_and_set(arguments, f"{LOSSLESS}-train")
    return compare(pixels, vectors, trained, copies=500)


def demo(arguments: argparse.Namespace) -> dict:
    """Among the demo's squares that do not overlap, and copies of a fifth of them."""
    pixels = apart_squares()
    trained = diptych.quick(diptych.images(pixels), show=False)
    return compare(pixels, trained(pixels), trained, copies=len(pixels) // 5)


def compare(pixels: Tensor, vectors: Tensor, trained: Trained, copies: int) -> dict:
    """Recall by kind and precision of every rival on one set with planted copies."""
    rows = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:copies]
    added = plant(pixels[rows], seed=0)
    everything = torch.cat([pixels, added])
    z = torch.cat([vectors, trained(added)])
    z_mirrored = trained(everything.flip(3))
    truth = {(int(row), len(pixels) + i): KINDS[i % len(KINDS)] for i, row in enumerate(rows)}
    started = time.process_time()
    pairs = find_copies(z, everything, mirrored=z_mirrored)
    seconds = time.process_time() - started
    rivals = {"audit": judged(pairs, truth) | {"cpu_seconds": round(seconds, 1)}}
    rivals["audit"]["expected_wrong"] = round(float(pairs.expected_wrong[-1]), 1) if len(pairs.score) else 0.0
    rivals["vectors alone"] = judged(near_duplicates(z, mirrored=z_mirrored), truth)
    for method in ("PHash", "DHash"):
        for bits, proposed in hash_pairs(everything, method, (0, 4, 10)).items():
            rivals[f"imagededup {method}, {bits} bits"] = judged_set(proposed, truth)
    unplanted = [
        (int(a), int(b), round(float(s), 3))
        for a, b, s in zip(*pairs[:3], strict=True)
        if (int(a), int(b)) not in truth
    ]
    return {"images": len(pixels), "copies": copies, "rivals": rivals, "unplanted_of_audit": unplanted[:40]}


def judged(pairs: Pairs, truth: dict) -> dict:
    return judged_set(set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)), truth)


def judged_set(proposed: set, truth: dict) -> dict:
    right = proposed & truth.keys()
    kinds = {
        kind: sum(truth[pair] == kind for pair in right) / max(1, list(truth.values()).count(kind)) for kind in KINDS
    }
    return {"proposed": len(proposed), "recall": round(len(right) / len(truth), 4),
            "precision": round(len(right) / max(1, len(proposed)), 4),
            "recall_of": {kind: round(share, 3) for kind, share in kinds.items()}}  # fmt: skip


def labels(arguments: argparse.Namespace) -> dict:
    """Wrong labels planted in the lossless training rows, uniform over the other classes."""
    from cleanlab.rank import get_label_quality_scores

    _, z, _, truth = encoder_and_set(arguments, f"{LOSSLESS}-train")
    y, results = torch.tensor(truth), []
    for share in SHARES:
        rng = torch.Generator().manual_seed(round(1000 * share))
        wrong = torch.rand(len(y), generator=rng) < share
        noisy = torch.where(wrong, (y + 1 + torch.randint(9, (len(y),), generator=rng)) % 10, y)
        probe, vote = probe_probabilities(z, noisy, 10), vote_probabilities(z, noisy, 10)
        suspects = suspects_of((probe + vote) / 2, noisy, list(range(10)))
        theirs = get_label_quality_scores(noisy.numpy(), probe.numpy(), method="self_confidence")
        count = int(wrong.sum())
        results.append({
            "share": share, "wrong": count, "noise_estimated": round(suspects.noise, 4),
            "average_precision": {
                "audit (probe and vote)": precision(suspects.row, wrong),
                "cleanlab self-confidence (probe)": precision(torch.from_numpy(theirs).argsort(), wrong),
                "vote alone": precision(vote.gather(1, noisy[:, None])[:, 0].argsort(), wrong)},
            "right_among_first": {str(k): [int((~wrong)[suspects.row[:k]].sum()),
                                           round(float(suspects.expected_right[k - 1]), 1)] for k in (50, 100, count)},
        })  # fmt: skip
    return {"images": len(y), "shares": results, "note": "right_among_first: k -> [labels that are right, expected]"}


def precision(order: Tensor, wrong: Tensor) -> float:
    """Average precision of a ranking."""
    hits = wrong[order].double()
    return round(float((hits.cumsum(0) / torch.arange(1, len(hits) + 1) * hits).sum() / hits.sum()), 4)


def neighbours(arguments: argparse.Namespace) -> dict:
    """CIFAR-10's test images (JPEG copy) that are in its training set."""
    _, z_test, test, _ = encoder_and_set(arguments, f"{JPEG}-test")
    _, z_train, train, _ = encoder_and_set(arguments, f"{JPEG}-train")
    sets = diptych.images(train), diptych.images(test)
    started = time.process_time()
    pairs = near_pairs(z_train, z_test, *sets, wrong=1.0)
    seconds = time.process_time() - started
    first = {}
    for a, b, score in zip(*(part.tolist() for part in pairs[:3]), strict=True):
        first.setdefault(a, (b, score))
    proposed = [(a, b, round(score, 4)) for a, (b, score) in first.items()]
    if arguments.sheet:
        draw(proposed[:SHOWN], test, train).save(arguments.sheet)
    return {"check_cpu_seconds": round(seconds, 1), "proposed_at_5_percent": len(pairs.surest(0.05).score),
            "expected_wrong_of_first_100": round(float(pairs.expected_wrong[min(99, len(pairs.score) - 1)]), 2),
            "first": proposed[:SHOWN]}  # fmt: skip


def draw(pairs: list[tuple[int, int, float]], test: Tensor, train: Tensor) -> Image.Image:
    """Pairs beside each other, the test image on the left, eight in a line."""
    side, columns = 84, 8
    sheet = Image.new("RGB", (columns * (2 * side + 16), -(-len(pairs) // columns) * (side + 22)), "white")
    from PIL import ImageDraw

    pen = ImageDraw.Draw(sheet)
    for i, (a, b, score) in enumerate(pairs):
        left, top = i % columns * (2 * side + 16), i // columns * (side + 22)
        for k, pixels in enumerate((test[a], train[b])):
            picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).resize(
                (side, side), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (left + k * side, top + 16))
        pen.text((left, top + 2), f"{i + 1}: {a} {b} {score:.3f}", fill="black")
    return sheet


def picked(arguments: argparse.Namespace) -> dict:
    """Accuracy of a linear head on picked and on random labels, in pairs, on the demo and CIFAR-10's lossless subset."""
    sets: dict[str, Callable] = {
        "CIFAR-10, lossless subset": lambda: cifar_vectors(arguments),
        "demo": lambda: demo_vectors(arguments),
    }
    results = {}
    for name, vectors in sets.items():
        z_train, y_train, z_test, y_test = vectors()
        for budget in BUDGETS:
            right = {kind: [] for kind in ("picked", "random")}
            for seed in range(SEEDS):
                random = torch.randperm(len(z_train), generator=torch.Generator().manual_seed(seed))[:budget]
                for kind, rows in (("picked", pick(z_train, budget, seed=seed)), ("random", random)):
                    probe = fit_probe(z_train[rows], y_train[rows], int(y_train.max()) + 1, seed=seed)
                    right[kind].append(probe.scores(z_test).argmax(1) == y_test)
            a, b = (torch.stack(right[kind]) for kind in ("picked", "random"))
            gain = paired_difference(a, b)
            results[f"{name}, {budget} labels"] = {
                "picked": round(a.double().mean().item(), 4), "random": round(b.double().mean().item(), 4),
                "gain": round(gain.difference, 4), "interval": [round(end, 4) for end in gain.interval],
                "seeds_won": sum(int(x.sum() > y.sum()) for x, y in zip(a, b, strict=True))}  # fmt: skip
            print(name, budget, results[f"{name}, {budget} labels"], flush=True)
    return {"seeds": SEEDS, "pool": POOL, "sets": results}


def demo_vectors(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    train, test = (diptych.images(demo_source(split), size=32) for split in ("train", "test"))
    train = train.subset(some(len(train)))
    trained = diptych.quick(train, show=False)
    return trained(train.pixels()), torch.tensor(train.labels), trained(test.pixels()), torch.tensor(test.labels)


def cifar_vectors(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, z_train, _, y_train = encoder_and_set(arguments, f"{LOSSLESS}-train")
    _, z_test, _, y_test = encoder_and_set(arguments, f"{LOSSLESS}-test")
    rows = some(len(z_train))
    return z_train[rows], torch.tensor(y_train)[rows], z_test, torch.tensor(y_test)


def some(count: int) -> Tensor:
    """The rows of the pool to pick from."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:POOL]


def speed(arguments: argparse.Namespace) -> dict:
    """All pairs of 50,000 x 256: the ten nearest of each, on one thread."""
    rows = 2_000 if arguments.quick else 50_000
    z = torch.randn(rows, 256, generator=torch.Generator().manual_seed(0))
    seconds, cpu = [], []
    for _ in range(1 if arguments.quick else arguments.repeats):
        wall, processor = time.perf_counter(), time.process_time()
        nearest_others(z, 10)
        seconds.append(round(time.perf_counter() - wall, 1))
        cpu.append(round(time.process_time() - processor, 1))
    return {
        "rows": rows,
        "width": 256,
        "threads": torch.get_num_threads(),
        "wall_seconds": seconds,
        "cpu_seconds_of_each": cpu,
    }


PARTS = {"planted": planted, "demo": demo, "labels": labels, "neighbours": neighbours, "pick": picked, "speed": speed}

if __name__ == "__main__":
    main()
