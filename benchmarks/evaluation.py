"""How long does it take to say what an encoder is worth? Linear probe, kNN, embedding.

    python -m benchmarks.evaluation [--device cuda]

Probe and kNN judge synthetic embeddings (correlated columns, ten overlapping clusters). scikit-learn's LogisticRegression and
ours minimise one function, and its values at both answers are compared; so are kNN's answers. Embedding is compared with the
bare forward of the same network on inputs that are ready.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import diptych
from benchmarks.measure import Row, faster, goal, in_turns, missing, parser, report
from benchmarks.views import pictures
from diptych.base.random_at import random_at
from diptych.downstream.classifier import IMAGES_PER_BATCH, stream
from diptych.embeddings.probe import softmax_regression
from diptych.embeddings.scores import votes
from diptych.networks.inference import Preprocessing, embeddings
from diptych.views.presets import CIFAR10

OURS, SKLEARN, LOOP, BARE = "Diptych", "scikit-learn", "plain torch loop", "bare forward"
WORK = {"probe": (20_000, 256), "knn": (50_000, 10_000, 256), "embed": 2048}
QUICK = {"probe": (300, 8), "knn": (600, 50, 8), "embed": 16}
CLASSES, K, TEMPERATURE = 10, 200, 0.1
PENALTIES = (1e-2, 1e-4)  # a strong one, and one that is often chosen
CLOSE = 1e-4  # relative, between two values of one objective
SAME_ANSWERS = 0.995  # of kNN: votes that are nearly even may turn with the order of equals


def clusters(n: int, width: int, *address: str) -> tuple[Tensor, Tensor]:
    """(n, width) embeddings, each column mean 0 and deviation 1, and their classes: as correlated as an encoder's are."""
    rng = random_at("benchmark", "clusters", *address)
    shared = random_at("benchmark", "clusters", width)
    centres = torch.randn(CLASSES, width, generator=shared)
    mix = torch.linalg.qr(torch.randn(width, width, generator=shared))[0] * torch.logspace(0, -1.5, width)[:, None]
    y = torch.randint(CLASSES, (n,), generator=rng)
    z = (0.15 * centres[y] + torch.randn(n, width, generator=rng)) @ mix
    return (z - z.mean(0)) / z.std(0), y


def objective(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, penalty: float) -> float:
    """Mean cross-entropy + penalty / 2 |w|^2 in float64: what both minimise."""
    logits = x.cpu().double() @ weight.cpu().double() + bias.cpu().double()
    return float(F.cross_entropy(logits, y.cpu()) + penalty / 2 * weight.double().square().sum())


def sklearn_probe(x: np.ndarray, y: np.ndarray, penalty: float, tolerance: float) -> tuple[Tensor, Tensor, int]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / (len(x) * penalty), tol=tolerance, max_iter=10_000).fit(x, y)
    return torch.from_numpy(model.coef_.T), torch.from_numpy(model.intercept_), int(model.n_iter_[0])


def probe(penalty: float, arguments: argparse.Namespace) -> None:
    """scikit-learn's tolerance is its default, or the first of the smaller ones that brings it to our objective."""
    n, width = (QUICK if arguments.quick else WORK)["probe"]
    x, y = (each.to(arguments.device) for each in clusters(n, width, "probe"))
    arrays = x.cpu().numpy(), y.cpu().numpy()
    solved = softmax_regression(x, y, CLASSES, penalty)
    values = {OURS: objective(x, y, solved.weight_EK, solved.bias_K, penalty)}
    told = {OURS: f"{solved.iterations} iterations"}
    runs: dict[str, Callable[[], object]] = {OURS: lambda: softmax_regression(x, y, CLASSES, penalty)}
    lost = missing("scikit-learn")
    for tolerance in () if lost else (1e-4, 1e-5, 1e-6, 1e-7):
        weight, bias, iterations = sklearn_probe(*arrays, penalty, tolerance)
        values[SKLEARN] = objective(x, y, weight, bias, penalty)
        told[SKLEARN] = f"{iterations} iterations, tol={tolerance:g}"
        runs[SKLEARN] = lambda tolerance=tolerance: sklearn_probe(*arrays, penalty, tolerance)
        if values[SKLEARN] < values[OURS] * (1 + CLOSE):
            break
    if max(values.values()) / min(values.values()) - 1 > CLOSE:
        raise AssertionError(f"not the same work: the objective is {values}")
    seconds = in_turns(runs, arguments.repeats, device=arguments.device)
    rows = [
        Row(name, seconds[name], note=f"objective {values[name]:.6f}, {told[name]}", extra={"objective": values[name]})
        for name in runs
    ]
    notes = [f"{SKLEARN}: {lost}"] if lost else [goal("probe,", faster(*rows), 2, " times as fast")]
    report("evaluation", f"linear probe of {n} x {width}, penalty {penalty:g}", rows, OURS, arguments, notes)


def loop(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """A product with the whole bank, topk and a vote by one-hot vectors, 512 queries at a time: as lightly's benchmarks do it."""
    bank, answers = F.normalize(train, dim=1).T, []
    for query in F.normalize(test, dim=1).split(512):
        similarity, index = (query @ bank).topk(K, dim=-1)
        votes = F.one_hot(labels[index], CLASSES) * (similarity / TEMPERATURE).exp().unsqueeze(-1)
        answers.append(votes.sum(1).argsort(dim=-1, descending=True)[:, 0])
    return torch.cat(answers)


def vote(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """What `knn_accuracy` does between its checks of the input and the accuracy."""
    return votes(train, labels, test, CLASSES, k=K, temperature=TEMPERATURE).argmax(1).cpu()


def sklearn_knn(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> Tensor:
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(
        K, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / TEMPERATURE)
    )
    return torch.from_numpy(model.fit(train, labels).predict(test))


def knn(arguments: argparse.Namespace) -> None:
    m, n, width = (QUICK if arguments.quick else WORK)["knn"]
    (train, labels), (test, _) = clusters(m, width, "train"), clusters(n, width, "test")
    arrays = train.numpy(), labels.numpy(), test.numpy()
    train, labels, test = (each.to(arguments.device) for each in (train, labels, test))
    found: dict[str, Tensor] = {}
    lost = missing("scikit-learn")
    runs = {
        OURS: lambda: found.update({OURS: vote(train, labels, test)}),
        LOOP: lambda: found.update({LOOP: loop(train, labels, test).cpu()}),
        SKLEARN: lambda: found.update({SKLEARN: sklearn_knn(*arrays)}),
    }
    if lost:
        runs.pop(SKLEARN)
    seconds = in_turns(runs, arguments.repeats, device=arguments.device)
    same = {name: float((answers == found[OURS]).float().mean()) for name, answers in found.items()}
    if not min(same.values()) >= SAME_ANSWERS:
        raise AssertionError(f"not the same work: of our answers others give {same}")
    rows = [Row(name, seconds[name], note=f"{same[name]:.2%} of our answers" * (name != OURS)) for name in runs]
    notes = [f"{SKLEARN}: {lost}"] * bool(lost) + [goal("kNN", rows[0].median, 3, " s", at_most=True)]
    report("evaluation", f"kNN, k = {K}, of {n} against {m} x {width}", rows, OURS, arguments, notes)


def embedding(arguments: argparse.Namespace) -> None:
    count = (QUICK if arguments.quick else WORK)["embed"]
    mean, std = CIFAR10
    expected = Preprocessing(32, mean, std)
    pixels = pictures(count, 32)
    photos = diptych.images(pixels)
    photos.prepare()  # decoded before: what is timed begins with uint8 in memory, as in a second evaluation
    network = diptych.encoder("resnet18", stem="small", size=32).to(arguments.device).eval()
    scale = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    batches = [
        ((batch.float() / 255 - scale[0]) / scale[1]).to(arguments.device) for batch in pixels.split(IMAGES_PER_BATCH)
    ]
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    found: dict[str, Tensor] = {}

    @torch.no_grad()
    def bare() -> None:
        found[BARE] = torch.cat([network(batch) for batch in batches]).cpu()

    runs = {OURS: lambda: found.update({OURS: embeddings(network, stream(photos), expected)}), BARE: bare}
    seconds = in_turns(runs, arguments.repeats, device=arguments.device)
    torch.testing.assert_close(found[OURS], found[BARE], rtol=1e-3, atol=1e-4)
    rows = [Row(name, seconds[name], count, "images/s") for name in runs]
    notes = [goal("of the bare forward's rate,", 100 * faster(*rows), 90, " %")]
    report("evaluation", f"embedding {count} images of 32 pixels, ResNet-18, small stem", rows, OURS, arguments, notes)


def main(words: Sequence[str] | None = None) -> None:
    arguments = parser("evaluation").parse_args(words)
    torch.set_num_threads(arguments.threads)
    for penalty in PENALTIES:
        probe(penalty, arguments)
    knn(arguments)
    embedding(arguments)


if __name__ == "__main__":
    main()
