"""Row 37 of docs/faults.md: a file of weights is read as numbers or not at all, wherever it is put."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from spoiled import SMALL, diptych, photographs, refusal


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return Path.mkdir, (self.canary,)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    photos = photographs(root / "photos", count=4)
    assert diptych("pretrain", photos, *SMALL, "--out", root / "run")[0] == 0
    return root / "run"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_37_a_pickle_that_acts_is_not_imported(zipped, tmp_path):
    canary, file = tmp_path / "canary", tmp_path / "resnet50.pth"
    torch.save({"conv1.weight": torch.ones(3), "extra": Evil(canary)}, file, _use_new_zipfile_serialization=zipped)
    torch.load(file, weights_only=False)
    assert canary.exists()  # it is a live one
    canary.rmdir()
    code, _, err = diptych("import-weights", file, "--out", tmp_path / "encoder")
    assert code == 4 and not canary.exists() and not (tmp_path / "encoder").exists()
    assert str(file) in refusal(err) and "nothing was read" in err and "torch.save(network.state_dict(), ...)" in err


@pytest.mark.parametrize("place", ["encoder/model.safetensors", "encoder/config.json"])
def test_37_a_pickle_in_the_place_of_an_encoders_file(place, run, tmp_path):
    own, canary = Path(shutil.copytree(run, tmp_path / "run")), tmp_path / "canary"
    torch.save(Evil(canary), own / place)
    code, _, err = diptych("embed", own, run.parent / "photos", "--out", tmp_path / "vectors")
    assert code == 4 and Path(place).name in refusal(err) and "damaged" in err
    assert not canary.exists() and not (tmp_path / "vectors").exists()


def test_37_a_file_where_an_encoder_folder_is_meant_points_to_import_weights(run, tmp_path):
    torch.save({}, tmp_path / "model.pt")
    photos = run.parent / "photos"
    for words in (["embed", tmp_path / "model.pt", photos, "--out", tmp_path / "out"],
                  ["evaluate", tmp_path / "model.pt", "--train", photos, "--test", photos],
                  ["classify", tmp_path / "model.pt", photos, "--train", photos, "--out", tmp_path / "out.csv"]):  # fmt: skip
        code, _, err = diptych(*words)
        assert code == 4 and f"`diptych import-weights {tmp_path / 'model.pt'} --out FOLDER`" in refusal(err)


def test_37_a_folder_of_distributed_checkpoints_is_not_read(tmp_path):
    """torch.distributed.checkpoint keeps its index as a pickle."""
    (tmp_path / "dcp").mkdir()
    with open(tmp_path / "dcp" / ".metadata", "wb") as file:
        torch.save(Evil(tmp_path / "canary"), file)
    code, _, err = diptych("import-weights", tmp_path / "dcp", "--out", tmp_path / "encoder")
    assert code == 4 and "is a folder; give a checkpoint file" in refusal(err)
    assert not (tmp_path / "canary").exists()


def test_37_arrays_of_objects_are_not_loaded(tmp_path):
    np.save(tmp_path / "images.npy", np.array([Evil(tmp_path / "canary")], dtype=object), allow_pickle=True)
    code, _, err = diptych("doctor", tmp_path / "images.npy")
    assert code == 3 and "images.npy" in refusal(err) and not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "change", [{"sha256": 5}, {"diptych": []}, {"diptych": {"encoder": "resnet18"}}, {"diptych": {}}]
)
def test_37_a_config_of_another_kind_is_one_error(change, run, tmp_path):
    own = Path(shutil.copytree(run, tmp_path / "run"))
    config = json.loads((own / "encoder" / "config.json").read_text())
    (own / "encoder" / "config.json").write_text(json.dumps(config | change))
    code, _, err = diptych("embed", own, run.parent / "photos", "--out", tmp_path / "vectors")
    assert code == 4 and "config.json is missing or damaged" in refusal(err)
