"""Encoder folders whose config.json or weights are not those of an encoder, and embeddings that are not numbers."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hostile import is_one_line
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from spoiled import diptych, photographs, refusal
from torch import nn

from diptych.base.errors import CheckpointError, DataError
from diptych.data.images import images
from diptych.downstream.embed import embed
from diptych.embeddings.store import load_embeddings
from diptych.networks.encoders import encoder
from diptych.networks.inference import Preprocessing
from diptych.runs.encoder import Trained, load, save_encoder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = encoder("resnet18", "small", 16, channels=(4, 4, 4, 4))
    return save_encoder(
        tmp_path_factory.mktemp("encoders") / "encoder", network, Preprocessing(16, (0.5,) * 3, (0.25,) * 3)
    )


def changed(whole: Path, folder: Path, keys: tuple[str, ...], value: object) -> Path:
    """A copy of the folder with another value at `keys` of its config.json."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    config = json.loads((folder / "config.json").read_text())
    part = config
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


OPTIONS, INPUT = ("diptych", "encoder"), ("diptych", "preprocessing")
WRONG = [
    (OPTIONS, "size", "32"), (OPTIONS, "size", [1]), (OPTIONS, "size", 10**9), (OPTIONS, "size", True),
    (OPTIONS, "name", 5), (OPTIONS, "name", "resnet19"), (OPTIONS, "stem", ["small"]), (OPTIONS, "stem", "tiny"),
    (("diptych",), "encoder", {}), (("diptych",), "encoder", 7), ((), "diptych", None), ((), "sha256", 5),
    (OPTIONS, "act_layer", "x"), (OPTIONS, "norm_layer", "x"), (OPTIONS, "block", "x"), (OPTIONS, "block", 5),
    (OPTIONS, "channels", [8, 8]), (OPTIONS, "channels", [4, 4, 4, 0]), (OPTIONS, "channels", [9000, 9000, 9000, 9000]),
    (OPTIONS, "channels", [10**19] * 4), (OPTIONS, "layers", [10**9] * 4), (OPTIONS, "no_such_option", 1),
    (OPTIONS, "num_classes", 3), (OPTIONS, "features_only", True), (OPTIONS, "drop_path_rate", "much"),
    (INPUT, "mean", ["a", "b", "c"]), (INPUT, "mean", [0.5]), (INPUT, "mean", [0.5, float("nan"), 0.5]),
    (INPUT, "std", None), (INPUT, "std", [0, 0, 0]), (INPUT, "std", [1e-60] * 3), (INPUT, "std", [-1, 1, 1]),
    (INPUT, "resize", "x"), (INPUT, "resize", 0), (INPUT, "size", "32"), (INPUT, "size", 10**9), (INPUT, "size", 0),
]  # fmt: skip


@pytest.mark.parametrize(("part", "key", "value"), WRONG)
def test_a_wrong_value_names_file_and_key(part, key, value, whole, tmp_path):
    folder = changed(whole, tmp_path / "encoder", (*part, key), value)
    photographs(tmp_path / "photos", count=1)
    code, out, err = diptych("embed", folder, tmp_path / "photos", "--out", tmp_path / "vectors")
    line = refusal(err)
    assert code == 4 and out == "" and not (tmp_path / "vectors").exists()
    if key in ("channels", "layers") and "does not fit" in line:
        assert f"{folder}/model.safetensors does not fit this network" in line
    else:
        assert f"{folder}/config.json is missing or damaged (" in line
        assert ".".join((*part, key)) in line or ("diptych.encoder" in line and (key in line or part == OPTIONS))


def test_a_wide_network_is_refused_before_it_takes_memory(whole, tmp_path):
    """9,000 channels would be 24 GB of weights: parameters are counted and shapes compared without them."""
    with pytest.raises(CheckpointError, match=r"there is room for|does not fit this network: .*of another shape"):
        load(changed(whole, tmp_path / "encoder", (*OPTIONS, "channels"), [9000] * 4))


def paths(value: object, keys: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The keys of every value in nested objects."""
    inner = [path for key in value for path in paths(value[key], (*keys, key))] if isinstance(value, dict) else []
    return [keys, *inner] if keys else inner


NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 7, 16, 33, 5000, 10**6, 2**31, 2**63, 10**30, 10**400])
ATOMS = NUMBERS | st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(
    ["small", "standard", "auto", "relu", "resnet18", "patch_dictionary", "\0", "\ud800"])  # fmt: skip
JSON = st.recursive(ATOMS, lambda part: st.lists(part, max_size=4) | st.dictionaries(
    st.sampled_from(["size", "name", "std", "é", ""]) | st.text(max_size=3), part, max_size=3), max_leaves=6)  # fmt: skip
ADDED = (
    "act_layer",
    "norm_layer",
    "block",
    "layers",
    "zero_init_last",
    "drop_rate",
    "in_chans",
    "output_stride",
    "x\n",
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_value_at_any_key_loads_or_is_one_error(data, whole, tmp_path_factory):
    change_any_value(data, whole, tmp_path_factory)


@pytest.mark.slow
@settings(max_examples=250, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_of_more_values_at_any_key_loads_or_is_one_error(data, whole, tmp_path_factory):
    change_any_value(data, whole, tmp_path_factory)


def change_any_value(data, whole, tmp_path_factory):
    keys = [*paths(json.loads((whole / "config.json").read_text())), *((*OPTIONS, key) for key in ADDED)]
    place = tmp_path_factory.getbasetemp() / "changed"
    folder = changed(whole, place, data.draw(st.sampled_from(keys)), data.draw(JSON))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trained = load(folder)
    except CheckpointError as error:
        assert error.exit_code == 4 and is_one_line(error)
    else:
        assert trained(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).isfinite().all()


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    text=st.binary(max_size=40) | JSON.map(json.dumps).map(str.encode) | st.just(b"[" * 100_000) | st.just(b"9" * 9999)
)
def test_any_file_as_config_is_one_error(text, whole, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "any"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    (folder / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match="config.json") as caught:
        load(folder)
    assert is_one_line(caught.value)


# --- numbers that are none


def with_weights(whole: Path, folder: Path, change) -> Path:
    """The folder with its tensors changed, and the hash that fits."""
    shutil.copytree(whole, folder)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        change(name, tensor)
    data = safetensors.torch.save(tensors)
    (folder / "model.safetensors").write_bytes(data)
    config = json.loads((folder / "config.json").read_text()) | {"sha256": hashlib.sha256(data).hexdigest()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["conv1.weight", "layer4.1.bn2.running_var"])
def test_weights_that_are_not_finite_name_file_and_tensor(name, number, whole, tmp_path):
    def spoil(key, tensor):
        if key == name:
            tensor.view(-1)[0] = number

    folder = with_weights(whole, tmp_path / "encoder", spoil)
    code, _, err = diptych("embed", folder, photographs(tmp_path / "photos", count=1), "--out", tmp_path / "vectors")
    assert code == 4 and f"{folder}/model.safetensors: 1 of " in refusal(err)
    assert f"numbers of {name} are NaN or infinite" in refusal(err) and not (tmp_path / "vectors").exists()


def grays(folder: Path, *values: int) -> Path:
    folder.mkdir()
    for k, value in enumerate(values):
        Image.new("RGB", (16, 16), (value,) * 3).save(folder / f"{k}.png")
    return folder


class Overflows(nn.Module):
    """The embedding of a bright image is infinite, of a dark one its brightness."""

    def forward(self, pixels):
        brightness = pixels.mean((1, 2, 3))[:, None]
        return torch.where(brightness > 0.5, brightness / 0, brightness).repeat(1, 4)


def test_embeddings_that_are_not_finite_are_failed_rows(tmp_path):
    photos = images(grays(tmp_path / "photos", 10, 200, 20, 250), size=16)
    (tmp_path / "photos" / "2.png").write_bytes(b"text")  # and one that cannot be read
    trained = Trained(Overflows(), Preprocessing(16))
    with pytest.warns(UserWarning, match=r"2 of 3 embeddings are not finite \(NaN or infinite\)"):
        assert len(embed(trained, photos, show=False)) == 3, "in memory, the rows stay those of the images"
    photos = images(tmp_path / "photos", size=16)
    with pytest.warns(UserWarning, match=r"2 of 3 embeddings are not finite \(NaN or infinite\)"):
        vectors = embed(trained, photos, out=tmp_path / "vectors", show=False)
    saved = load_embeddings(tmp_path / "vectors")
    assert torch.equal(vectors, saved.vectors)
    assert saved.vectors.shape == (1, 4) and saved.vectors.isfinite().all() and saved.meta["failed"] == 3
    assert [row["status"] for row in saved.index] == ["ok", "failed", "failed", "failed"]
    assert [row["row"] for row in saved.index] == [0, None, None, None]
    assert saved.index[1]["error"] == saved.index[3]["error"] == "its embedding is not finite (NaN or infinite)"
    assert "not an image" in saved.index[2]["error"]


def test_no_finite_embedding_is_an_error_and_no_folder(tmp_path):
    photos = images(grays(tmp_path / "photos", 200, 250), size=16)
    with pytest.raises(DataError, match="none of the 2 embeddings is finite: the encoder is damaged") as caught:
        embed(Trained(Overflows(), Preprocessing(16)), photos, out=tmp_path / "vectors", show=False)
    assert caught.value.exit_code == 3 and not (tmp_path / "vectors").exists()


def test_weights_that_overflow_end_the_command_with_3(whole, tmp_path):
    """Finite weights, and no finite embedding."""
    folder = with_weights(
        whole, tmp_path / "encoder", lambda key, tensor: tensor.fill_(3e38) if tensor.ndim else tensor
    )
    photos = photographs(tmp_path / "photos", count=2)
    code, out, err = diptych("embed", folder, photos, "--out", tmp_path / "vectors")
    assert code == 3 and out == "" and f"the encoder of {folder} is damaged" in refusal(err)
    assert not (tmp_path / "vectors").exists()
    code, _, err = diptych("classify", folder, photos, "--train", photos, "--out", tmp_path / "labels.csv")
    assert code == 3 and "hold NaN or infinity" in refusal(err) and not (tmp_path / "labels.csv").exists()


def test_imported_weights_are_finite(tmp_path):
    tensors = encoder("resnet18", "standard", 64).state_dict()
    tensors["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save({"state_dict": tensors}, tmp_path / "x.pth")
    code, _, err = diptych("import-weights", tmp_path / "x.pth", "--out", tmp_path / "encoder")
    assert code == 4 and "x.pth: 1 of " in refusal(err) and "layer1.0.conv1.weight are NaN" in refusal(err)
    assert not (tmp_path / "encoder").exists()


# --- images with nothing in them


@pytest.mark.parametrize("alike", ["constant", "identical"])
def test_images_all_alike_are_embedded_and_labelled(alike, whole, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(6):
            image = Image.new("RGB", (16, 16), (128, 128, 128)) if alike == "constant" else noise
            image.save(tmp_path / "photos" / name / f"{k}.png")
    code, out, err = diptych("embed", whole, tmp_path / "photos", "--out", tmp_path / "vectors")
    assert code == 0 and "12 x 4 float32, 0 images failed" in out, err
    vectors = load_embeddings(tmp_path / "vectors").vectors
    assert vectors.isfinite().all() and (vectors - vectors[0]).abs().max() < 1e-5
    table = tmp_path / "labels.csv"
    code, out, err = diptych("classify", whole, tmp_path / "photos", "--train", tmp_path / "photos", "--out", table)
    assert code == 0 and "nan" not in out.lower(), err
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    assert len(rows) == 12 and all(0.49 < float(row[2]) <= 0.75 for row in rows), "no certainty without a difference"
