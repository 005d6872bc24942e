"""What is the closed form worth? `diptych quick` beside raw pixels and a plain dictionary of patches, over several seeds.

    python -m benchmarks.closed_form [--sets demo digits letters] [--seeds 3]
    python -m benchmarks.closed_form --sets cifar10 --train TRAIN --test TEST     (any labelled SOURCE)

Every row is judged by the same kNN and the same linear probe on the same test images; nothing is chosen on them. The dictionary
is the first layer alone, pooled to 3 x 3 and standardised (Coates, Lee and Ng 2011). CPU-seconds are of this process: the
fit on the training images, and the embedding of training and test images. A seed draws other patches; on the demo also
other squares.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import diptych
from benchmarks.few_labels import digits
from benchmarks.measure import commit, machine, parser
from diptych.data.images import Images
from diptych.data.photographs import demo_source
from diptych.embeddings.scores import Score, knn_accuracy, linear_probe
from diptych.networks.inference import raw_pixels
from diptych.training.dictionary import blocks
from diptych.training.quick import KEEP, quick, resized

RAW, DICTIONARY = "raw pixels", "dictionary"


def demo(arguments: argparse.Namespace, seed: int) -> tuple[Images, Images]:
    """The squares of `diptych demo` with this seed."""
    train, test = (diptych.images(demo_source(split, seed)) for split in ("train", "test"))
    return train, test


def given_sources(arguments: argparse.Namespace, seed: int) -> tuple[Images, Images]:
    if not (arguments.train and arguments.test):
        raise SystemExit("this set needs --train SOURCE and --test SOURCE")
    train, test = (diptych.images(source, size=arguments.size) for source in (arguments.train, arguments.test))
    return train, test


SETS: dict[str, Callable[[argparse.Namespace, int], tuple[Images, Images]]] = {
    "demo": demo,
    "digits": lambda arguments, seed: digits(),
    "cifar10": given_sources,
    "sources": given_sources,
}


def main() -> None:
    arguments = options()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.sets:
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            rows += [
                {"set": name, "seed": seed} | row for row in compare(*SETS[name](arguments, seed), seed, arguments)
            ]
            if not arguments.quick:
                write(rows, arguments)
        show([row for row in rows if row["set"] == name], name)


def options() -> argparse.Namespace:
    command = parser("closed_form", threads=1)
    command.add_argument("--sets", nargs="+", choices=SETS, default=["demo", "digits"])
    command.add_argument("--train", help="labelled training images (SOURCE)")
    command.add_argument("--test", help="labelled test images (SOURCE)")
    command.add_argument("--size", type=int, default=32)
    command.add_argument("--entries", type=int, help="of the dictionary [by the number of images]")
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--first-seed", type=int, default=0)
    command.add_argument(
        "--no-dictionary", action="store_true", help="leave its probe out, which is slow where it is wide"
    )
    command.add_argument("--name", default="closed-form", help="of the JSON")
    return command.parse_args()


def compare(train: Images, test: Images, seed: int, arguments: argparse.Namespace) -> list[dict]:
    """A row for raw pixels, the dictionary, and each part of the closed form, of one seed."""
    sets = [images.pixels()[:: 20 if arguments.quick else 1] for images in (train, test)]
    labels = [torch.tensor(images.labels)[:: 20 if arguments.quick else 1].tolist() for images in (train, test)]
    rows = [judged(RAW, [raw_pixels(pixels, (0.5,) * 3, (0.25,) * 3) for pixels in sets], labels, seed, 0.0, 0.0)]
    start = time.process_time()
    trained = quick(diptych.images(sets[0]), seed=seed, entries=arguments.entries, show=False)
    fitted = time.process_time()
    vectors = [trained(pixels) for pixels in sets]
    done = time.process_time()
    codes = 2 * trained.encoder.first_code.out_features
    parts = {"both": slice(None), "codes": slice(codes), "twins": slice(codes, None)}
    for name in KEEP:
        part = [z[:, parts[name]] for z in vectors]
        rows.append(judged(f"closed form, {name}", part, labels, seed, fitted - start, done - fitted))
    if arguments.no_dictionary:
        return rows
    first = [first_layer(trained, pixels) for pixels in sets]
    scale = first[0].std(0).clamp_min(1e-3)
    rows.append(judged(DICTIONARY, [(z - first[0].mean(0)) / scale for z in first], labels, seed, 0.0, 0.0))
    return rows


@torch.no_grad()
def first_layer(trained: diptych.Trained, pixels: Tensor) -> Tensor:
    """The pooled responses of the first dictionary, which the closed form then reduces and whitens."""
    small = resized(pixels, trained.preprocessing.size)
    return torch.cat([trained.encoder.codes(block)[0] for block in blocks(small)])


def judged(
    name: str, vectors: Sequence[Tensor], labels: Sequence[list[int]], seed: int, fit: float, embed: float
) -> dict:
    """kNN and linear accuracy, with their intervals over the test images."""
    names = [[str(label) for label in part] for part in labels]
    arrays = vectors[0], names[0], vectors[1], names[1]
    nearest, linear = knn_accuracy(*arrays), linear_probe(*arrays, seed=seed)
    row = {"encoder": name, "width": vectors[0].shape[1], "fit_cpu_seconds": round(fit, 1),
           "embed_cpu_seconds": round(embed, 1)}  # fmt: skip
    return row | score_of("knn", nearest) | score_of("linear", linear) | {"k": nearest.details["k"]}


def score_of(protocol: str, score: Score) -> dict:
    return {
        protocol: round(100 * score.accuracy, 2),
        f"{protocol}_interval": [round(100 * end, 2) for end in score.interval],
    }


def show(rows: Sequence[dict], name: str) -> None:
    print(f"{name}: mean of the seeds (smallest to largest)")
    for encoder in dict.fromkeys(row["encoder"] for row in rows):
        mine = [row for row in rows if row["encoder"] == encoder]
        accuracies = "".join(
            f"{protocol} {spread([row[protocol] for row in mine])}   " for protocol in ("knn", "linear")
        )
        seconds = [row["fit_cpu_seconds"] + row["embed_cpu_seconds"] for row in mine]
        cost = f"fit and embedding {spread(seconds)} CPU-s" if max(seconds) else ""
        print(f"  {encoder:<20}{mine[0]['width']:>6}   {accuracies}{cost}")


def spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def write(rows: list[dict], arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = {"commit": commit(), "machine": machine(), "threads": arguments.threads, "rows": rows}
    (arguments.out / f"{arguments.name}-{arguments.device}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
