"""Weights made by an enemy: nothing that they name is called, fetched or opened, and the error is one line of ours."""

import json
import pickle
import pickletools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import attacks, few, is_one_line, tree
from hypothesis import given
from hypothesis import strategies as some

from diptych.base.errors import CheckpointError, DataError, DiptychError, RecipeError
from diptych.commands import recipe
from diptych.data.cifar import INSTRUCTIONS, read_batch
from diptych.data.open import open_source
from diptych.networks.encoders import encoder
from diptych.runs.checkpoints import read_tensors
from diptych.runs.encoder import Preprocessing, load, save_encoder
from diptych.runs.foreign import import_weights

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


WRAPPINGS = (
    lambda attack: attack,
    lambda attack: {"state_dict": {"conv1.weight": attack}},
    lambda attack: {"model": {"conv1.weight": torch.zeros(2)}, "args": [1, (attack,)]},
    lambda attack: {"state_dict": {"a": torch.zeros(1)}, "optimizer": {"state": {0: {"m": attack}}}},
)


@pytest.mark.parametrize("number", range(6))
def test_the_attacks_would_succeed(tmp_path, number):
    pickle.loads(pickle.dumps(attacks(tmp_path / "canary")[number]))
    assert (tmp_path / "canary").is_dir()


@few(40)
@given(number=some.integers(0, 5), wrap=some.sampled_from(WRAPPINGS), protocol=some.integers(2, 5),
       form=some.sampled_from(["zip", "old", "bare"]))  # fmt: skip
def test_a_checkpoint_calls_nothing(tmp_path, number, wrap, protocol, form):
    canary, file = tmp_path / "canary", tmp_path / "evil.pth"
    content = wrap(attacks(canary)[number])
    if form == "bare":
        file.write_bytes(pickle.dumps(content, protocol))
    else:
        torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match="evil.pth") as caught:
        import_weights(file, tmp_path / "encoder")
    assert is_one_line(caught.value) and tree(tmp_path) == ["evil.pth"]


@few(20)
@given(
    name=some.sampled_from(["../outside", "/{}/outside", "..\\outside", "x/../../outside", "data.pkl", "archive/../.."])
)
def test_members_of_a_checkpoint_stay_in_it(tmp_path, name):
    torch.save({"state_dict": {"conv1.weight": torch.zeros(64, 3, 7, 7)}}, tmp_path / "whole.pth")
    inner = tmp_path / "inner"
    inner.mkdir(exist_ok=True)
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, zipfile.ZipFile(inner / "evil.pth", "w") as evil:
        for member in whole.namelist():
            evil.writestr(name.format(tmp_path) if member.endswith("/data/0") else member, whole.read(member))
    with pytest.raises(CheckpointError, match="evil.pth"):
        import_weights(inner / "evil.pth", tmp_path / "encoder")
    assert tree(tmp_path) == ["inner", "inner/evil.pth", "whole.pth"]


CODES = [bytes([ord(code.code)]) for code in pickletools.opcodes if code.name in INSTRUCTIONS]


@few(150)
@given(program=some.lists(some.sampled_from([*CODES, b"cos\nsystem\n", b"cnumpy\ndtype\n", b"K\x01", b"X\1\0\0\0a", b"\x80\x02"])
                          | some.binary(max_size=4), max_size=12))  # fmt: skip
def test_a_cifar_batch_is_followed_and_never_run(tmp_path, program):
    file = tmp_path / "data_batch_1"
    file.write_bytes(b"".join([*program, b"."]))
    try:
        assert isinstance(read_batch(file), dict)
    except DataError as error:
        assert is_one_line(error)
    assert tree(tmp_path) == ["data_batch_1"]


@few(12)
@given(number=some.integers(0, 5), protocol=some.integers(0, 5))
def test_attacks_as_cifar_batches_and_as_arrays(tmp_path, number, protocol):
    attack = attacks(tmp_path / "canary")[number]
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": attack, "labels": [1]}, protocol))
    np.save(tmp_path / "a.npy", np.array([attack], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=np.array([attack], dtype=object), allow_pickle=True)
    for name in ("data_batch_1", "a.npy", "a.npz"):
        with pytest.raises(DataError, match=name):
            open_source(tmp_path / name)
    assert tree(tmp_path) == ["a.npy", "a.npz", "data_batch_1"]


# --- safetensors and encoder folders

NUMBERS = some.integers(-2, 9) | some.sampled_from([2**31, 2**63, 2**64, 10**30]) | some.none() | some.text(max_size=2)
LISTS = some.lists(NUMBERS, max_size=3) | NUMBERS
DTYPES = some.sampled_from(["F32", "F8_E4M3", "I64", "OBJ", "", 7, None])
ENTRY = some.fixed_dictionaries({"dtype": DTYPES, "shape": LISTS, "data_offsets": LISTS})
CLAIMS = some.none() | some.sampled_from([0, 3, 10**6, 10**8, 2**40, 2**63, 2**64 - 1])


@few(120)
@given(header=some.dictionaries(some.sampled_from(["a", "b", "__metadata__", "../x"]), ENTRY | NUMBERS), claimed=CLAIMS,
       rest=some.binary(max_size=40))  # fmt: skip
def test_a_lying_safetensors_header_is_one_error(tmp_path, header, claimed, rest):
    text = json.dumps(header).encode()
    length = len(text) if claimed is None else claimed
    (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + text + rest)
    try:
        tensors = read_tensors(tmp_path / "x.safetensors")
        assert sum(tensor.nbytes for tensor in tensors.values()) <= len(rest)
    except CheckpointError as error:
        assert "x.safetensors is not a readable safetensors file" in str(error)
    assert tree(tmp_path) == ["x.safetensors"]


@pytest.fixture(scope="module")
def small_encoder(tmp_path_factory) -> Path:
    network = encoder("resnet18", "standard", 32, channels=(4, 4, 4, 4))
    return save_encoder(tmp_path_factory.mktemp("encoders") / "encoder", network, Preprocessing(32))


def choices(folder: Path) -> list[dict]:
    """What a recipe or an encoder folder may say of its network, to have something fetched, opened or run."""
    evil = str(folder / "evil.pth")
    places = [{"url": "https://example.invalid/x.pth"}, {"hf_hub_id": "example/x"}, {"file": evil}]
    told = [
        {"pretrained": True, key: place} for key in ("pretrained_cfg", "pretrained_cfg_overlay") for place in places
    ]
    names = [{"name": name} for name in ("hf-hub:example/x", f"local-dir:{folder}", "os.system")]
    return [{"pretrained": True}, {"checkpoint_path": evil}, {"cache_dir": str(folder / "cache")}, *names, *told]


@pytest.mark.parametrize("number", range(12))
def test_an_encoder_folder_has_nothing_fetched_or_opened(small_encoder, tmp_path, number):
    """The network is closed (conftest.py): a folder that reaches for it fails this test, whatever the error."""
    option = choices(tmp_path)[number]
    torch.save({"state_dict": {"x": attacks(tmp_path / "canary")[0]}}, tmp_path / "evil.pth")
    config = json.loads((small_encoder / "config.json").read_text())
    config["diptych"]["encoder"] |= option
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((small_encoder / "model.safetensors").read_bytes())
    if "name" in option:
        with pytest.raises(DiptychError) as caught:
            load(folder)
        assert is_one_line(caught.value)
    else:  # as if it had not been said: the weights lie beside it
        wanted, got = load(small_encoder).encoder.state_dict(), load(folder).encoder.state_dict()
        assert all(torch.equal(wanted[key], got[key]) for key in wanted)
    assert tree(tmp_path) == ["encoder", "encoder/config.json", "encoder/model.safetensors", "evil.pth"]


@pytest.mark.parametrize("number", range(1, 12))
def test_a_recipe_says_no_place_of_weights(tmp_path, number):
    """`pretrained: true` alone is the user's to ask for; the README says that it may reach the network."""
    option = choices(tmp_path)[number]
    overrides = [f"encoder.{key}={json.dumps(value)}" for key, value in option.items()]
    with pytest.raises(RecipeError) as caught:
        asked = recipe.read_recipe("demo", overrides)
        encoder(**asked["encoder"])
    assert is_one_line(caught.value) and tree(tmp_path) == []
