"""Fine-tuning: which labels are used, what moves, and that something is learned."""

import copy
import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from fake_run import fake_run
from tiny import TinyEncoder, tiny_images, tiny_run

from diptych.base.errors import DataError, RecipeError
from diptych.commands import cli
from diptych.downstream.classifier import Classifier, crop_and_flip, fit, image_batches, steps_of
from diptych.downstream.few_labels import parse_labels, subset
from diptych.downstream.finetune import finetune
from diptych.downstream.tuning import Tuning, tune
from diptych.methods import BarlowTwins
from diptych.networks.encoders import encoder
from diptych.reporting.numbers import accuracy_section
from diptych.reporting.record import read_run
from diptych.runs.encoder import Preprocessing, load
from diptych.training.optimizers import sgd
from diptych.training.schedules import constant

CPU = torch.device("cpu")
EXPECTED = Preprocessing(12, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("runs") / "run", epochs=1)


def test_subsets_are_balanced_seeded_and_nested():
    labels = [f"class {i % 5}" for i in range(500)]
    chosen = {share: subset(labels, share, 3).tolist() for share in (0.01, 0.05, 0.1, 1.0, 2, 10, 100)}
    for amount, rows in chosen.items():
        count = amount if isinstance(amount, int) else round(100 * amount)
        assert Counter(labels[row] for row in rows) == {f"class {k}": max(1, count) for k in range(5)}
        assert rows == sorted(set(rows)) == subset(labels, amount, 3).tolist()
    assert set(chosen[0.01]) < set(chosen[0.05]) < set(chosen[0.1]) < set(chosen[1.0])
    assert chosen[10] == chosen[0.1] and chosen[1.0] == list(range(500))
    assert chosen[0.1] != subset(labels, 0.1, 4).tolist()


def test_a_share_is_of_each_class_and_no_class_is_lost():
    labels = ["many"] * 90 + ["few"] * 3
    assert Counter(labels[row] for row in subset(labels, 0.1, 0)) == {"many": 9, "few": 1}
    with pytest.raises(DataError, match="'few' has 3 images, fewer than the 4"):
        subset(labels, 4, 0)


def test_labels_are_a_share_or_a_number():
    assert [parse_labels(text) for text in (0.01, "0.05", "1", 1.0)] == [0.01, 0.05, 1.0, 1.0]
    found = [parse_labels(text) for text in ("10pc", "10 per class", "3 PC")]
    assert found == [10, 10, 3] and all(isinstance(number, int) for number in found)
    for text in (0, 10, "0pc", "ten", -0.1, "nan"):
        with pytest.raises(RecipeError, match="10pc"):
            parse_labels(text)


def trained(frozen: bool, encoder_lr: float = 0.05) -> tuple[dict, dict]:
    """The state of classifier's network before and after a few steps on tiny images."""
    photos = tiny_images()
    classifier = Classifier(TinyEncoder(), 4, seed=0, frozen=frozen)
    before = copy.deepcopy(classifier.state_dict())
    optimizer = sgd(classifier, 0.5, groups=[{"match": "encoder", "lr": encoder_lr}])
    batches = image_batches(photos, torch.tensor(photos.labels), crop_and_flip(EXPECTED), 12, 0, CPU)
    fit(classifier, optimizer, batches, 2, 8, constant(), 0)
    return before, classifier.state_dict()


def test_a_frozen_encoder_stays_and_a_tuned_one_moves():
    before, after = trained(frozen=True)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias"}
    before, after = trained(frozen=False)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    before, after = trained(frozen=False, encoder_lr=0.0)  # its rate is its own; statistics move in training mode
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "head.weight" in moved and not {name for name in moved if name.endswith("0.weight")} - {"head.weight"}


def test_an_epoch_sees_every_image_once_but_never_one_alone():
    photos = tiny_images(25)
    seen = []

    class Rows:  # a view that tells the images by their sum
        def __call__(self, images, rng):
            seen.extend(images.double().sum((1, 2, 3)).tolist())
            return images.float()

    sums = sorted(photos.pixels().double().sum((1, 2, 3)).tolist())
    for batch_size, sizes in ((10, [10, 10, 5]), (12, [12, 12]), (32, [25])):
        seen.clear()
        batches = image_batches(photos, torch.arange(25), Rows(), batch_size, 0, CPU)
        parts = list(batches(0))
        assert [len(y) for _, y in parts] == sizes and steps_of(25, batch_size) == len(sizes)
        assert [float(x.double().sum()) for x, _ in parts] == [
            float(photos.pixels()[y].double().sum()) for _, y in parts
        ]
        if sum(sizes) == 25:
            assert sorted(seen) == sums
    assert not torch.equal(torch.cat([y for _, y in batches(0)]), torch.cat([y for _, y in batches(1)]))


def test_a_separable_task_is_learned():
    photos = tiny_images(96)
    torch.manual_seed(0)
    train, test = photos.subset(range(64)), photos.subset(range(64, 96))
    made = tune(
        TinyEncoder(), train, test, EXPECTED, tuning=Tuning(60, 16, 0.1, 0.1, published=True), device=CPU, seed=0
    )
    assert made.accuracy > 0.9 and made.train_images == 64 and made.test_images == 32
    made = tune(TinyEncoder(), train, test, EXPECTED, tuning=Tuning(60, 16, 0.03, 0.03), device=CPU, seed=0)
    assert made.accuracy > 0.9 and made.details["optimizer"] == "AdamW"
    again = tune(TinyEncoder(), train, test, EXPECTED, tuning=Tuning(4, 16, 0.0, 0.0), device=CPU, seed=0)
    assert again.accuracy < 0.6


def test_finetune_compares_on_the_same_labels(run):
    photos, trained = tiny_images(), load(run, TinyEncoder())
    before = (run.folder / "encoder" / "model.safetensors").read_bytes()
    options = {"epochs": 2, "batch_size": 8, "show": False, "device": "cpu"}
    lines = finetune(trained, photos, photos, labels="3pc", **options).lines()
    assert [line["subject"] for line in lines] == ["chance", "raw pixels", "trained, frozen", "from scratch", "trained"]
    assert {line["protocol"] for line in lines} == {"finetune"}
    for line in lines[1:]:
        assert line["train_images"] == 12 and line["test_images"] == 48 and line["classes"] == 4
        assert line["details"]["labels"] == "3pc"
        assert line["interval"][0] < line["accuracy"] < line["interval"][1] or line["accuracy"] in (0, 1)
    assert [line["details"]["on"] for line in lines[1:3]] == ["pixels", "embedding"]
    assert [line["details"]["labels_per_class"] for line in lines[3:]] == ["3", "3"]
    assert [line["details"]["start"] for line in lines[3:]] == ["normal", "probe"]
    assert len({(line["details"]["steps"], line["details"]["batch_size"]) for line in lines[3:]}) == 1, "equal budgets"
    assert lines == finetune(trained, photos, photos, labels="3pc", **options).lines(), "the same again"
    assert (run.folder / "encoder" / "model.safetensors").read_bytes() == before
    evaluation = finetune(trained, photos, photos, labels=0.5, seeds=2, **options)
    more = evaluation.lines()
    for line in more[1:]:
        details = line["details"]
        assert line["accuracy"] == pytest.approx(sum(details["accuracies"]) / 2) and details["seeds"] == 2
        gap = abs(details["accuracies"][0] - details["accuracies"][1])
        assert details["spread"] == pytest.approx(gap / 2**0.5)
    assert "from scratch: mean of 2 seeds" in str(evaluation)
    written = [json.loads(text) for text in (run.folder / "evaluations.jsonl").read_text().splitlines()]
    assert [line for line in written if "diagnosis" not in line] == lines * 2 + more


def test_the_report_has_a_column_for_each_number_of_labels(tmp_path):
    folder = fake_run(tmp_path / "run")
    sizes = {"interval": [0.3, 0.5], "train_images": 50, "test_images": 100, "classes": 5, "seed": 0}
    with open(folder / "evaluations.jsonl", "a") as file:
        for labels, trained, scratch in (("0.01", 0.4, 0.3), ("0.1", 0.6, 0.5)):
            for subject, accuracy in (("trained", trained), ("from scratch", scratch)):
                line = {"protocol": "finetune", "subject": subject, "accuracy": accuracy, **sizes}
                file.write(json.dumps(line | {"details": {"labels": labels, "labels_per_class": "5"}}) + "\n")
    made = accuracy_section(read_run(folder))
    titles = [protocol["title"] for protocol in made["protocols"]]
    assert titles == ["kNN", "linear", "finetune, labels 0.01", "finetune, labels 0.1"]
    assert "labels per class 5" in made["protocols"][2]["settings"] and "together" in made["protocols"][2]["text"]
    cells = {row["subject"]: [cell and cell["value"] for cell in row["cells"]] for row in made["rows"]}
    assert cells["trained"][2:] == [0.4, 0.6] and cells["from scratch"] == [None, None, 0.3, 0.5]


def test_the_command(capsys, tmp_path):
    photos, folder = tiny_images(), tmp_path / "photos.npz"
    np.savez(folder, images=photos.pixels().permute(0, 2, 3, 1).numpy(), labels=np.array(photos.labels))
    torch.manual_seed(0)
    network = encoder("resnet18", stem="small", size=12, channels=(4, 4, 4, 4))
    run = tiny_run(tmp_path / "run", BarlowTwins(network, projector=(8, 8)), photos, epochs=1)

    def command(*words: object) -> int | str | None:
        before, sys.argv = sys.argv, ["diptych", *map(str, words)]
        try:
            cli.main()
        except SystemExit as end:
            return end.code
        finally:
            sys.argv = before
        return 0

    words = ["finetune", run.folder, "--train", folder, "--test", folder, "--epochs", 1, "--device", "cpu"]
    assert not command(*words, "--share", "2pc", "--seeds", 2)
    told = capsys.readouterr().out
    assert "from scratch" in told and "48 test and 8 training images of 4 classes" in told and "mean of 2 seeds" in told
    assert command(*words, "--share", "7") == 2
    assert "10pc" in capsys.readouterr().err
    assert not command("evaluate", *words[1:6], "--protocol", "linear-keras-embedding", "--device", "cpu")
    assert "linear-keras-embedding" in capsys.readouterr().out
