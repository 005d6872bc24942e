"""`diptych export`: which formats carry which encoder, what is refused, and what the card says."""

import errno
import json
import os
import re
import sys

import numpy as np
import pytest
import torch
import yaml
from fake_run import fake_run
from readers import as_trained, trained_encoder
from spoiled_images import broken_images
from torch import nn

import diptych
from diptych import Preprocessing, Trained
from diptych.base.errors import CheckpointError, DataError, OutputError, RecipeError
from diptych.data.images import images
from diptych.downstream import export as exporting
from diptych.downstream.export import export
from diptych.downstream.formats import CARRY_ALL, FORMATS, why_not
from diptych.downstream.programs import difference
from diptych.networks.encoders import encoder
from diptych.runs.encoder import load, save_encoder
from diptych.runs.encoder_config import crop_share

NARROW = {"channels": (4, 4, 8, 8)}
TIMM = {"timm", "transformers"}
# name, size, options -> the formats beside onnx and torch-export that carry it
NETWORKS = [
    ("resnet18", 64, {"stem": "standard"}, {*TIMM, "torchvision"}),
    ("resnet18", 64, {"stem": "standard", "zero_init_last": False, "drop_path_rate": 0.1}, {*TIMM, "torchvision"}),
    ("resnet18", 64, {"stem": "standard", **NARROW}, TIMM),
    ("resnet18", 32, {"stem": "small", **NARROW}, set()),
    ("resnet18", 64, {"stem": "small-stride2", **NARROW}, set()),
    ("resnet18", 32, {"stem": "small-padded", **NARROW}, set()),
    ("resnet50", 64, {"stem": "standard"}, {*TIMM, "torchvision"}),
    ("resnet50", 32, {"stem": "small", **NARROW}, set()),
    ("resnet26d", 64, {"stem": "standard"}, TIMM),
    ("convnext_atto", 64, {}, TIMM),
    ("vit_tiny_patch16_224", 64, {}, TIMM),
    ("mobilenetv3_small_050", 64, {}, TIMM),
    ("keras_resnet34", 32, {}, set()),
    ("keras_resnet20v2", 32, {}, set()),
    ("patch_dictionary", 16, {"entries": 8, "second_entries": 32, "reduced": 8, "gathered": 8}, set()),
    ("small_convolutions", 32, {"widths": (8, 12, 16)}, set()),
    ("resnet18", 64, {"stem": "standard", "channels": None}, {*TIMM, "torchvision"}),
]
IDS = [f"{name}-{'-'.join(str(value) for value in options.values())}" for name, _, options, _ in NETWORKS]


def joined(size: int = 16) -> nn.Module:
    first, second = (
        encoder("patch_dictionary", size=size, **NETWORKS[14][2]),
        encoder("small_convolutions", widths=(4, 4, 4)),
    )
    parts = {
        "dictionary": diptych.networks.encoders.built_with(first),
        "trained": diptych.networks.encoders.built_with(second),
    }
    return encoder("joined", size=size, parts=[[4, 3, 0.6], [16, 4, 0.3], [16, 4, 0.3]], **parts).eval()


class Own(nn.Sequential):
    """A module of the user's."""

    num_features = 6

    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Branching(Own):
    """Its computation depends on the pixels, which no exported program can express."""

    def forward(self, images):
        return super().forward(images if images.mean() > 0 else -images)


def own(kind=Own, size: int = 16) -> Trained:
    torch.manual_seed(0)
    return Trained(as_trained(kind(), size), Preprocessing(size))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Trained:
    return trained_encoder(tmp_path_factory.mktemp("narrow") / "encoder", "resnet18", 32, stem="standard", **NARROW)


@pytest.mark.parametrize(("name", "size", "options", "carrying"), NETWORKS, ids=IDS)
def test_which_formats_carry_which_network(name, size, options, carrying, tmp_path):
    with torch.device("meta"):
        network = encoder(name, size=size, **options)
    trained = Trained(network, Preprocessing(size))
    assert {known for known in FORMATS if why_not(known, trained) is None} == {*carrying, *CARRY_ALL}
    for refused in set(FORMATS) - carrying - set(CARRY_ALL):
        with pytest.raises(
            RecipeError, match=rf"--to {refused} .*{name}.*use --to .*onnx or --to torch-export$"
        ) as error:
            export(trained, [refused, "onnx"], out=tmp_path / "out", show=False)
        assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


QUICK = {(IDS[2], "timm"), (IDS[3], "onnx"), (IDS[3], "torch-export"), (IDS[11], "timm")}  # the others are slow tests
WRITTEN = [
    pytest.param(
        *network, formats, marks=() if (name, formats[0]) in QUICK else pytest.mark.slow, id=f"{name}-{formats[0]}"
    )
    for name, network in zip(IDS, NETWORKS, strict=True)
    for formats in ([known for known in FORMATS if known in network[3]], ["torch-export"], ["onnx"])
    if formats
]


@pytest.mark.parametrize(("name", "size", "options", "carrying", "formats"), WRITTEN)
def test_what_carries_it_is_written_and_agrees(name, size, options, carrying, formats, tmp_path, capfd):
    trained = trained_encoder(tmp_path / "encoder", name, size, **options)
    photos = images(np.random.default_rng(0).integers(0, 256, (9, size, size, 3), dtype=np.uint8))
    exported = export(trained, formats, out=tmp_path / "out", images=photos, show=False)
    assert capfd.readouterr() == ("", ""), "the exporters are quiet"
    assert exported.formats == formats and exported.differences
    assert all(gap <= 1e-5 for gap in exported.differences.values()), exported
    if "timm" in formats:
        assert torch.equal(load(tmp_path / "out")(photos.pixels()), trained(photos.pixels()))


@pytest.mark.slow
@pytest.mark.parametrize("name", CARRY_ALL)
def test_a_joined_encoder_is_carried(name, tmp_path):
    torch.manual_seed(0)
    exported = export(Trained(joined(), Preprocessing(16)), name, out=tmp_path / "out", show=False)
    assert max(exported.differences.values()) <= 1e-5


def test_a_module_of_the_users(tmp_path):
    exported = export(own(), "torch-export", out=tmp_path / "out", show=False)
    assert exported.differences["encoder.pt2"] <= 1e-6
    with pytest.raises(RecipeError, match="Own is a module of your own"):
        export(own(), "timm", out=tmp_path / "other", show=False)


def test_a_program_that_cannot_be_exported_leaves_nothing(tmp_path):
    with pytest.raises(RecipeError, match="torch-export cannot express Branching") as error:
        export(own(Branching), "torch-export", out=tmp_path / "out", show=False)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_a_network_that_was_changed_after_it_was_built(narrow, tmp_path):
    network = diptych.networks.encoders.copy_of(narrow.encoder)
    network.fc = nn.Linear(8, 3)
    with pytest.raises(RecipeError, match="changed since"):
        export(Trained(network, narrow.preprocessing), "timm", out=tmp_path / "out", show=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_never_appears(tmp_path, monkeypatch):
    opened = exporting.open_exported
    monkeypatch.setattr(exporting, "open_exported", lambda data: lambda images: opened(data)(images) * (1 + 1e-3))
    with pytest.raises(OutputError, match=r"encoder\.pt2 gives other embeddings"):
        export(own(), "torch-export", out=tmp_path / "out", show=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "program",
    [
        lambda images: images[:, :2] * float("nan"),
        lambda images: images[:, :2] if len(images) > 1 else images[:, :2] + 1,
        lambda images: images,
    ],
)
def test_a_difference_is_noticed(program):
    inputs = torch.rand(8, 3)
    assert difference(lambda images: images[:, :2], inputs, inputs[:, :2], "it") == 0
    with pytest.raises(OutputError, match="^it gives"):
        difference(program, inputs, inputs[:, :2], "it")


def test_an_occupied_folder_is_refused_at_once(narrow, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        export("nowhere", "timm", out=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    export(narrow, "timm", out=tmp_path / "empty", show=False)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"to": "tensorflow"}, "no format 'tensorflow'; --to is one of timm, transformers"),
        ({"to": []}, "no format is named"),
        ({"to": "timm", "with_preprocessing": True}, "add --to onnx"),
        ({"to": "timm", "licence": "mine\nlibrary_name: x"}, "not an identifier of a licence"),
    ],
)
def test_wrong_arguments(narrow, tmp_path, arguments, problem):
    with pytest.raises(RecipeError, match=problem):
        export(narrow, out=tmp_path / "out", show=False, **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(narrow, tmp_path, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RecipeError, match=rf'needs {package}: pip install "diptych\[onnx\]"'):
        export(narrow, "onnx", out=tmp_path / "out", show=False)
    export(narrow, "timm", out=tmp_path / "out", show=False)


def test_weights_too_large_for_one_onnx_file(narrow, tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.downstream.formats.MOST_ONNX_BYTES", 1000)
    with pytest.raises(RecipeError, match="--to onnx does not support this encoder.*use --to timm"):
        export(narrow, "onnx", out=tmp_path / "out", show=False)


def test_a_full_disk_leaves_nothing(narrow, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=rf"cannot write {tmp_path}/out/model.safetensors \(no space left"):
        export(narrow, "timm", out=tmp_path / "out", show=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_filled_meanwhile_stays(narrow, tmp_path, monkeypatch):
    def slow(*arguments):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        return "card"

    monkeypatch.setattr(exporting, "card_of", slow)
    with pytest.raises(OutputError, match="cannot write the folder"):
        export(narrow, "timm", out=tmp_path / "out", show=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_no_encoder(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        export(tmp_path / "nowhere", "timm", out=tmp_path / "out")


def test_unreadable_images_are_passed_over(narrow, tmp_path):
    photos = images(broken_images(tmp_path / "photos", good=3, bad=2), size=32, resident=False)
    export(narrow, "timm", out=tmp_path / "out", images=photos, show=False)
    assert "8 given images" in (tmp_path / "out" / "README.md").read_text()
    photos = images(broken_images(tmp_path / "bad", good=0, bad=2), size=32, resident=False)
    with pytest.raises(DataError, match="bad"):
        export(narrow, "timm", out=tmp_path / "other", images=photos, show=False)
    assert not (tmp_path / "other").exists()


def test_the_crop_of_timm_is_ours():
    for size in range(1, 400):
        for opened in range(size, size + 200, 7):
            assert int(np.floor(size / crop_share(size, opened))) == opened


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An evaluated run with an encoder."""
    folder = fake_run(tmp_path_factory.mktemp("run") / "run")
    without = [{"subject": "trained", "protocol": "linear", "accuracy": 0.861}]
    with open(folder / "evaluations.jsonl", "a") as file:
        file.write(json.dumps({"leaks": {"exact": 2, "near": 1, "test_images": 900, "without": without}}) + "\n")
    torch.manual_seed(0)
    network = as_trained(encoder("resnet18", stem="standard", size=32, **NARROW), 32)
    save_encoder(folder / "encoder", network, Preprocessing(32, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 36))
    (folder / "checkpoints" / "step_0000009").mkdir(parents=True)
    (folder / "checkpoints" / "step_0000009" / "state.json").write_text(json.dumps({"data": "ab" * 32, "images": 5400}))
    return folder


def test_the_card(run, tmp_path):
    diptych.export(run, "timm", out=tmp_path / "out", licence="cc-by-4.0", show=False)
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front == {
        "library_name": "timm", "license": "cc-by-4.0", "pipeline_tag": "image-feature-extraction",
        "tags": ["image-feature-extraction", "self-supervised", "timm", "diptych"],
    }  # fmt: skip
    for line in (
        "| size | 32 x 32 pixels |",
        "to 36 x 36 pixels, bilinear with antialias (as in Pillow); of these the central 32 x 32 |",
        "| colour order | RGB |",
        "| mean | (0.4, 0.5, 0.6) |",
        "| std | (0.2, 0.25, 0.3) |",
        "| output | one vector of 8 float32 numbers per image |",
        "| L2-normalised | **no**",
        f"| fingerprint of the images | {'ab' * 32} |",
        "| images | 5,400 |",
        "**Licence of the weights:** cc-by-4.0.",
        "| raw pixels | 35.2 [34.3 to 36.0] | 39.4 [38.6 to 40.2] |",
        "| trained | 83.1 [82.2 to 83.9] | 86.8 [86.0 to 87.6] |",
        "| diagnosis of its embeddings | OK (rank 171, rank share 0.335, spread 0.84) |",
        "**3 of 900 test images are in the training set: 2 with the same pixels, 1 as near copies. Without them the trained "
        "encoder has linear 86.1 %.**",
        "its penalty chosen on a held-out part, penalty 0.0001",
        "8 images that the run keeps",
    ):
        assert line in text, line
    assert not re.search(r"\n\n\n", text), "no gaps"
    assert str(run.parent) not in text + (tmp_path / "out" / "config.json").read_text(), "no path of this machine"
    assert "shapes/" not in text, "nor the run's source"


def test_the_card_of_an_encoder_of_which_little_is_known(narrow, tmp_path):
    export(narrow, "transformers", out=tmp_path / "out", show=False)
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["license"], front["license_name"]) == ("other", "not-stated")
    assert "not stated by their owner" in text and "Not measured" in text and "8 drawn images" in text


HOSTILE = "a|b\n\n# <script>alert(1)</script> [x](javascript:1) ```python\nimport os\n```"


def test_a_hostile_run_makes_no_other_card(run, tmp_path):
    """What stands in a run's files is text in one cell of the card, whatever it says."""
    line = {
        "protocol": HOSTILE,
        "accuracy": 0.5,
        "interval": [0.4, 0.6],
        "train_images": 1,
        "test_images": 1,
        "classes": 2,
    }
    line |= {"details": {HOSTILE: HOSTILE}}
    lines = [json.dumps(line | {"subject": subject}) for subject in ("trained", HOSTILE)]
    other = fake_run(tmp_path / "run")
    save_encoder(other / "encoder", load(run).encoder, load(run).preprocessing)
    (other / "recipe.yaml").write_text(json.dumps({"recipe": HOSTILE, "method": {"name": HOSTILE}, "images": {}}))
    (other / "environment.json").write_text(json.dumps({"versions": {HOSTILE: HOSTILE}, "commit": HOSTILE}))
    (other / "evaluations.jsonl").write_text("\n".join(lines))
    export(other, "timm", out=tmp_path / "out", show=False)
    text = (tmp_path / "out" / "README.md").read_text()
    assert (
        text.count("\n# ") == 1
        and text.count("```python\n") == 2
        and "import os" not in re.split("^```", text, flags=re.M)[1]
    )
    assert not re.search(r"(?<!\\)<script|(?<!\\)\[x|(?<!\\)\|b", text)


def test_the_command(run, tmp_path, capfd):
    from diptych.commands import cli

    words = ["diptych", "export", str(run), "--to", "timm", "--to", "torch-export", "--out", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", words)
        cli.main()
        raise SystemExit(0)
    out, err = capfd.readouterr()
    assert end.value.code in (0, None)
    assert err.splitlines() == ["export model.safetensors (timm) ...", "export encoder.pt2 and run it ..."]
    assert out.startswith(f"{tmp_path / 'out'}  timm, torch-export;") and len(out.splitlines()) == 3
