"""Few labels: the fitted budget, flips, the start from the probe, and who wins."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import TinyEncoder, tiny_images, tiny_run

from diptych.base.errors import RecipeError
from diptych.base.random_at import random_at
from diptych.data.images import Images, images
from diptych.downstream.classifier import Classifier, logits, steps_of
from diptych.downstream.comparison import verdict_on_labels
from diptych.downstream.finetune import finetune
from diptych.downstream.flips import flips_keep_classes
from diptych.downstream.results import Evaluation
from diptych.downstream.tuning import Budget, Tuning, start_from_probe, tune, up_to
from diptych.embeddings.probe import softmax_regression
from diptych.embeddings.scores import Score, accuracy_interval, linear_probe
from diptych.reporting.numbers import accuracy_section
from diptych.reporting.record import read_run
from diptych.runs.encoder import Preprocessing, load
from diptych.runs.subjects import SCRATCH, TRAINED, frozen_name

CPU = torch.device("cpu")
EXPECTED = Preprocessing(12, (0.5,) * 3, (0.25,) * 3)


def test_the_budget_follows_the_number_of_labels():
    budget = Budget()
    sizes = {n: budget.images_per_step(n) for n in (2, 9, 20, 150, 216, 1551, 50_000)}
    assert sizes == {2: 2, 9: 9, 20: 10, 150: 19, 216: 27, 1551: 74, 50_000: 80}
    for n in range(2, 3000, 7):
        size = budget.images_per_step(n)
        assert min(n, 8) <= size <= 80 and (n % size == 0 or n % size > size / 3), "no batch is tiny"
    steps = {n: budget.number_of_steps(n) for n in (10, 150, 216, 1551, 3000, 50_000)}
    assert steps == {10: 600, 150: 600, 216: 600, 1551: 1260, 3000: 2000, 50_000: 12_500}
    assert all(a <= b for a, b in pairwise(budget.number_of_steps(n) for n in range(64, 9000, 64)))


def test_what_is_given_replaces_what_is_fitted():
    assert Budget(steps=7).number_of_steps(150) == 7
    assert Budget(epochs=3, batch_size=50).number_of_steps(150) == 9
    ours = Budget(encoder_lr=0.5, scratch_lr=0.25).tuning(150, TRAINED)
    assert (ours.encoder_lr, ours.head_lr) == (0.5, Budget().tuning(150, TRAINED).head_lr)
    theirs = Budget(encoder_lr=0.5, scratch_lr=0.25).tuning(150, SCRATCH)
    assert (theirs.encoder_lr, theirs.head_lr) == (0.25, 0.25)
    assert (theirs.steps, theirs.batch_size) == (ours.steps, ours.batch_size)
    for wrong in ({"epochs": 0}, {"steps": 0}, {"batch_size": 1}, {"steps": -3}, {"epochs": 2, "steps": 5}):
        with pytest.raises(RecipeError, match=r"epochs|steps"):
            Budget(**wrong)


def test_the_published_settings_can_be_had():
    tuning = Budget(published=True).tuning(10_000, TRAINED)
    assert tuning == Tuning(20 * 40, 256, 0.005, 0.5, "normal", published=True)
    assert Budget(published=True, epochs=3).tuning(10_000, TRAINED).steps == 120
    result = tune(TinyEncoder(), tiny_images(), tiny_images(), EXPECTED, tuning=Budget(published=True).tuning(48, TRAINED),
                  device=CPU, seed=0)  # fmt: skip
    assert result.details["as_in"].startswith("evaluate.py") and result.details["optimizer"] == "SGD"
    assert result.details["augmentation"] == "crop and flip" and result.details["steps"] == 20


def test_steps_are_exact():
    batches = up_to(10, 4, lambda epoch: iter([(torch.tensor(epoch), torch.tensor(k)) for k in range(4)]))
    assert [len(list(batches(epoch))) for epoch in range(4)] == [4, 4, 2, 0]
    assert steps_of(150, 19) == 8


def test_training_starts_at_the_accuracy_of_the_frozen_encoder():
    photos, network = tiny_images(), TinyEncoder().eval()
    before = copy.deepcopy(network.state_dict())
    train, test = photos.subset(range(24)), photos.subset(range(24, 48))
    y, truth = torch.tensor(train.labels), torch.tensor(test.labels)
    classifier = Classifier(network, 4, seed=0)
    start_from_probe(classifier, train, y, EXPECTED, seed=0)
    z, queries = (load_vectors(network, part) for part in (train, test))
    probe = linear_probe(z, y, queries, truth)
    right = logits(classifier.eval(), test, EXPECTED).argmax(1) == truth
    assert probe.correct is not None and torch.equal(right, probe.correct) and probe.accuracy > 0.5
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def load_vectors(network: torch.nn.Module, photos: Images) -> torch.Tensor:
    return logits(network, photos, EXPECTED)


def lines_of(mirrored: bool) -> tuple[Images, torch.Tensor]:
    """Bars on the left (class 0) or on the right (class 1), or of the same height on either side."""
    rng = np.random.default_rng(0)
    pixels, y = rng.integers(0, 60, (60, 10, 10, 3)), np.arange(60) % 2
    for i, kind in enumerate(y):
        if mirrored:
            pixels[i, 2 if kind else 7, :, :] += 150
            continue
        pixels[i, :, 2 if kind else 7, :] += 150
    return images(pixels.astype(np.uint8), labels=y.tolist()), torch.from_numpy(y)


def test_flips_only_where_they_keep_the_class():
    assert not flips_keep_classes(*lines_of(mirrored=False)), "left and right are the classes"
    assert flips_keep_classes(*lines_of(mirrored=True)), "above and below are the classes"
    noise = images(np.random.default_rng(1).integers(0, 255, (40, 40, 40, 3)).astype(np.uint8), labels=[0, 1] * 20)
    assert flips_keep_classes(noise, torch.tensor([0, 1] * 20)), "without evidence, flips are usual"
    photos, y = lines_of(mirrored=False)
    for given, text in ((photos, "crop from 50% of the area"), (tiny_images(), "crop from 50% of the area, flip")):
        result = tune(TinyEncoder(), given, given, EXPECTED, tuning=Tuning(2, 20, 0.01, 0.01), device=CPU, seed=0)
        assert result.details["augmentation"] == text


def test_a_wide_probe_is_the_same_minimum():
    """Fewer embeddings than columns: the answer in the span of the embeddings is that of the direct search."""
    rng = random_at(0, "wide")
    x, y = torch.randn(30, 50, generator=rng, dtype=torch.float64), torch.arange(30) % 3
    ours = softmax_regression(x, y, 3, 1e-2)
    weight = torch.zeros(50, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=3000, tolerance_grad=1e-9, tolerance_change=0,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def objective():
        search.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight + bias, y) + 0.005 * weight.square().sum()
        loss.backward()
        return loss

    search.step(objective)
    assert torch.allclose(ours.weight_EK, weight, atol=1e-3) and ours.converged
    again = softmax_regression(x, y, 3, 1e-2, start=ours)
    assert again.iterations <= 1 and torch.allclose(again.weight_EK, ours.weight_EK, atol=1e-4)


def score_of(subject: str, right: list[bool]) -> Score:
    correct = torch.tensor(right)
    accuracy = correct.double().mean().item()
    return Score("finetune", accuracy, accuracy_interval(correct), 150, len(right), 2, 0, {}, subject, correct)


@pytest.mark.parametrize(
    ("scratch", "frozen", "verdict"),
    [
        (60, 60, "the fine-tuned encoder is better than every other row"),
        (95, 60, "from scratch is better than the fine-tuned encoder by 15.0 points [7.6 to 21.8]: train from scratch"),
        (60, 95, "trained, frozen is better than the fine-tuned encoder by 15.0 points [7.6 to 21.8]: use `diptych classify`"),
        (81, 60, "no significant difference between the fine-tuned encoder and from scratch"),
        (60, 79, "no significant difference between the fine-tuned encoder and trained, frozen: use `diptych classify`, "
                 "which costs less"),
    ],
)  # fmt: skip
def test_the_verdict(scratch, frozen, verdict):
    def first(count: int) -> list[bool]:
        return [i < count for i in range(100)]

    scores = [
        score_of(frozen_name(TRAINED), first(frozen)),
        score_of(SCRATCH, first(scratch)),
        score_of(TRAINED, first(80)),
    ]
    text = verdict_on_labels(scores)
    assert text[0] == f"verdict on 150 labels: {verdict}"
    assert (
        len(text) == 4
        and text[1].startswith(f"  gain over {frozen_name(TRAINED)}: {80 - frozen:+.1f} [")
        and "p " in text[1]
    )
    assert "\n".join(text) in str(Evaluation(scores))
    assert verdict_on_labels(scores[:2]) == [] and "verdict" not in str(Evaluation(scores[:2]))


def test_the_verdict_of_several_seeds(tmp_path):
    run, photos = tiny_run(tmp_path / "run", epochs=1), tiny_images()
    evaluation = finetune(load(run, TinyEncoder()), photos, photos, "3pc", steps=2, seeds=2, device="cpu", show=False)
    for score in evaluation.scores[1:]:
        assert score.correct is not None and score.correct.shape == (2, 48)
        assert score.correct.double().mean(1).tolist() == pytest.approx(score.details["accuracies"])
    assert "over test images and seeds" in str(evaluation)
    assert all("correct" not in line for line in evaluation.lines())
    assert "of this one seed" not in str(evaluation)


def test_the_report_shows_every_row(tmp_path):
    run, photos = tiny_run(tmp_path / "run", epochs=1), tiny_images()
    finetune(load(run, TinyEncoder()), photos, photos, "3pc", steps=2, device="cpu", show=False)
    section = accuracy_section(read_run(run.folder))
    rows = {row["subject"]: row for row in section["rows"]}
    assert [title["title"] for title in section["protocols"]] == ["finetune, labels 3pc"]
    assert all(
        rows[name]["cells"][0] is not None for name in ("chance", "raw pixels", SCRATCH, TRAINED, frozen_name(TRAINED))
    )
    assert rows[frozen_name(TRAINED)]["why"] and "optimizer AdamW" in section["protocols"][0]["settings"]
