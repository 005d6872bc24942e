"""Is training from scratch, the rival of a trained encoder on few labels, as good as a plain supervised loop?

    python -m benchmarks.few_labels [--sets digits] [--labels 150] [--seeds 3] [--run digits RUN]

The row "from scratch" of `diptych finetune`, on digits of scikit-learn and on squares of its photographs, beside the same
network trained by a plain loop of torch alone: AdamW, one cycle, random crops, with and without flips (the better one counts),
equally many images. Every row of a seed uses the same labels. --run adds the other rows of `finetune`, for the encoder of a run.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diptych
from benchmarks.measure import commit, goal, machine, parser
from diptych.data.images import Images
from diptych.data.photographs import demo_source
from diptych.downstream.few_labels import parse_labels, take_labels
from diptych.downstream.finetune import finetune, from_scratch
from diptych.downstream.tuning import Budget, tune
from diptych.networks.inference import Preprocessing
from diptych.runs.encoder import Trained
from diptych.runs.subjects import SCRATCH

PLAIN, PLAIN_FLIP = "plain loop", "plain loop, flips"
SHARE = 0.95  # of the plain loop's accuracy that training from scratch has to reach
SMALL = {"name": "resnet18", "stem": "small-stride2", "channels": (32, 32, 64, 128), "size": 32}  # of `demo`
LARGE = {"name": "resnet18", "stem": "standard", "channels": (64, 64, 128, 256), "size": 64}  # of `barlow-twins-small`
MEAN, STD = (0.5,) * 3, (0.25,) * 3


def digits() -> tuple[Images, Images]:
    """1,200 and 597 digits of scikit-learn, 8 x 8 pixels enlarged to 32."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.from_numpy(data.images)[:, None].float() * 255 / 16
    pixels = F.interpolate(pixels, (32, 32), mode="bilinear").round().byte().expand(-1, 3, -1, -1)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0)).tolist()
    images = diptych.images(pixels.numpy(), labels=data.target.tolist())
    return images.subset(order[:1200]), images.subset(order[1200:])


def photographs(size: int) -> tuple[Images, Images]:
    """The squares of `diptych demo`."""
    train, test = (diptych.images(demo_source(split, 0, size), labels="auto") for split in ("train", "test"))
    return train, test


SETS = {
    "digits": (SMALL, digits),
    "photographs": (SMALL, lambda: photographs(32)),
    "photographs64": (LARGE, lambda: photographs(64)),
}


def main() -> None:
    arguments = options()
    torch.set_num_threads(arguments.threads)
    results = []
    for name in arguments.sets:
        network, read = SETS[name]
        train, test = read()
        trained = encoder_of(arguments, name, network)
        for labels in arguments.labels:
            per_class = max(2, round(labels / len(train.classes or ())))
            results.append(compare(trained, train, test, f"{per_class}pc", arguments) | {"set": name})
            show(results[-1])
            if not arguments.quick:
                write(results, arguments)


def options() -> argparse.Namespace:
    known = parser("few_labels")
    known.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    known.add_argument("--labels", nargs="+", type=int, default=[150, 1500])
    known.add_argument("--seeds", type=int, default=3)
    known.add_argument("--run", nargs=2, action="append", default=[], metavar=("SET", "RUN"), help="a trained encoder")
    arguments = known.parse_args()
    if arguments.quick:
        arguments.sets, arguments.labels, arguments.seeds = ["digits"], [20], 1
    return arguments


def encoder_of(arguments: argparse.Namespace, name: str, network: dict) -> Trained:
    """The encoder of a run, or an untrained network."""
    runs = dict(arguments.run)
    if name in runs:
        return diptych.load(runs[name])
    torch.manual_seed(0)
    return Trained(diptych.encoder(**network), Preprocessing(network["size"], MEAN, STD))


def compare(trained: Trained, train: Images, test: Images, labels: str, arguments: argparse.Namespace) -> dict:
    """The accuracies of every row, a list of one per seed, and the seconds of all seeds of each."""
    budget = Budget(steps=4) if arguments.quick else Budget()
    started = time.perf_counter()
    if trained.folder is not None:
        evaluation = finetune(
            trained, train, test, labels, steps=budget.steps, seeds=arguments.seeds, device=arguments.device, show=False
        )
        rows = {str(score.subject): score.details.get("accuracies", [score.accuracy]) for score in evaluation.scores}
        seconds, table = {"finetune, all rows": time.perf_counter() - started}, str(evaluation)
    else:
        rows, seconds, table = {}, {}, ""
    rivals: dict[str, Callable[[Images, int], float]] = {
        PLAIN: lambda part, seed: plain(
            trained, part, test, budget=budget, flip=False, seed=seed, device=arguments.device
        ),
        PLAIN_FLIP: lambda part, seed: plain(
            trained, part, test, budget=budget, flip=True, seed=seed, device=arguments.device
        ),
    }
    if SCRATCH not in rows:
        rivals = {SCRATCH: lambda part, seed: scratch(trained, part, test, budget, seed, arguments.device)} | rivals
    for name, rival in rivals.items():
        started = time.perf_counter()
        rows[name] = [rival(take_labels(train, parse_labels(labels), seed), seed) for seed in range(arguments.seeds)]
        seconds[name] = time.perf_counter() - started
    number = len(take_labels(train, parse_labels(labels), 0))
    return {"labels": number, "classes": len(train.classes or ()), "test_images": len(test), "accuracies": rows,
            "seconds": seconds, "table": table}  # fmt: skip


def scratch(trained: Trained, part: Images, test: Images, budget: Budget, seed: int, device: str) -> float:
    """The accuracy of the row "from scratch" of `finetune`."""
    return tune(from_scratch(trained, seed), part, test, trained.preprocessing, tuning=budget.tuning(len(part), SCRATCH),
                device=torch.device(device), seed=seed).accuracy  # fmt: skip


def plain(
    trained: Trained, train: Images, test: Images, *, budget: Budget, flip: bool, seed: int, device: str
) -> float:
    """The accuracy after training by a loop that anybody would write: 32 images per step, rate 0.003, no validation."""
    network, n = from_scratch(trained, seed), len(train)
    pictures = budget.number_of_steps(n) * budget.images_per_step(n)
    torch.manual_seed(seed)
    x, y = normal(train.pixels()).to(device), torch.tensor(train.labels, device=device)
    classifier = nn.Sequential(network, nn.Linear(network.num_features, len(train.classes or ()))).to(device)
    batch = min(32, len(x))
    per_epoch = len(x) // batch
    epochs = math.ceil(pictures / batch / per_epoch)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * per_epoch)
    classifier.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), device=device).split(batch)[:per_epoch]:
            loss = F.cross_entropy(classifier(augmented(x[rows], flip)), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
    classifier.eval()
    with torch.no_grad():
        answers = torch.cat([classifier(part.to(device)).argmax(1).cpu() for part in normal(test.pixels()).split(500)])
    return (answers == torch.tensor(test.labels)).double().mean().item()


def normal(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def augmented(x: Tensor, flip: bool) -> Tensor:
    """Boxes of 50 % to 100 % of the area at random places, mirrored with probability 1/2 where `flip`."""
    n = len(x)
    side = (torch.rand(n) * 0.5 + 0.5).sqrt()
    across, down = (torch.rand(2, n) * 2 - 1) * (1 - side)
    sign = torch.where((torch.rand(n) < 0.5) & flip, -1.0, 1.0)
    zero = torch.zeros(n)
    theta = torch.stack([side * sign, zero, across, zero, side, down], 1).reshape(n, 2, 3).to(x.device)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False,
                         padding_mode="reflection")  # fmt: skip


def show(result: dict) -> None:
    print(
        f"\n{result['set']}: {result['labels']:,} labels of {result['classes']} classes, {result['test_images']:,} test images"
    )
    for name, accuracies in result["accuracies"].items():
        spread = f" +- {100 * statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        print(f"{name:<20}{100 * statistics.fmean(accuracies):6.1f}{spread}")
    print("seconds of all seeds: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in result["seconds"].items()))
    print(goal(f"{SCRATCH}, as a share of the better plain loop,", reached(result), SHARE), flush=True)


def reached(result: dict) -> float:
    """The mean accuracy from scratch over that of the better plain loop, which is chosen on the test images."""
    means = {name: statistics.fmean(accuracies) for name, accuracies in result["accuracies"].items()}
    return means[SCRATCH] / max(means[PLAIN], means[PLAIN_FLIP])


def write(results: list[dict], arguments: argparse.Namespace) -> None:
    """OUT/few_labels-DEVICE.json: the results of this call replace those of the same set and number of labels."""
    path: Path = arguments.out / f"few_labels-{arguments.device}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    context = {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "threads": torch.get_num_threads(),
    }
    for result in results:
        known[f"{result['set']}, {result['labels']} labels"] = result | context | {"share": reached(result)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
