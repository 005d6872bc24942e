"""More epochs for a finished run, and a run that starts with another's encoder."""

import os
import shutil
from pathlib import Path

import numpy as np
import own_process
import pytest
import torch
from test_cli import SMALL, diptych, photos  # noqa: F401  (photos: a fixture)
from tiny import EPOCHS, SIGKILL, STEPS, TinyEncoder, tiny_images, tiny_method, tiny_run, told, weights_of

from diptych.base.errors import CheckpointError, DataError, RecipeError
from diptych.base.files import read_json_lines
from diptych.methods import BarlowTwins
from diptych.networks.encoders import encoder
from diptych.runs.encoder import load
from diptych.runs.run import Run
from diptych.runs.starting import start_encoder
from diptych.training.early_stop import EarlyStop
from diptych.training.extend import extend

MORE = 5  # epochs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("runs") / "finished").folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def extended(finished, tmp_path_factory):
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "extended"))
    extend(folder, MORE, tiny_images())
    return tiny_run(folder, epochs=MORE)


def test_an_extended_run_goes_on_from_its_last_step(finished, extended):
    steps = [line["step"] for line in extended.lines("step")]
    assert steps == list(range(1, MORE * STEPS + 1))  # each once
    assert told(extended)[: EPOCHS * STEPS] == told(Run(finished))[: EPOCHS * STEPS]
    assert [line["epoch"] for line in extended.lines("epoch")] == [1, 2, 3, 4, 5]
    assert [line["epochs"] for line in extended.lines("end")] == [MORE]
    assert extended.recipe["pretrain"]["epochs"] == MORE
    assert extended.recipe["extended"] == [{"from": EPOCHS, "to": MORE}]
    before, after = (load(folder, TinyEncoder()).encoder.state_dict() for folder in (finished, extended))
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert read_json_lines(extended.folder / f"evaluations_{EPOCHS}_epochs.jsonl")
    assert len(read_json_lines(extended.folder / "evaluations.jsonl")) == 1


def test_the_rate_is_that_of_the_new_length(finished, extended):
    rates = {line["step"]: line["lr"][0] for line in extended.lines("step")}
    ended = {line["step"]: line["lr"][0] for line in Run(finished).lines("step")}
    first = EPOCHS * STEPS + 1
    assert rates[first - 1] == ended[first - 1] < rates[first]  # the cosine of 3 epochs has ended, that of 5 has not
    whole = {
        line["step"]: line["lr"][0] for line in tiny_run(extended.folder.parent / "new", epochs=MORE).lines("step")
    }
    assert {step: rate for step, rate in rates.items() if step >= first} == pytest.approx(
        {step: rate for step, rate in whole.items() if step >= first}
    )


def killed_in_the_extension(folder: str) -> None:
    """For a process of its own."""
    method = tiny_method()
    method.signal_at = (9, SIGKILL)  # `Struck` counts in twelfths of the run: in the fourth of five epochs
    tiny_run(Path(folder), method, epochs=MORE)


def test_an_extension_that_is_killed_resumes_bit_equal(copy, extended):
    extend(copy, MORE, tiny_images())
    assert own_process.run(killed_in_the_extension, str(copy)) == -SIGKILL
    taken = Run(copy).lines("step")[-1]["step"]
    assert EPOCHS * STEPS < taken < MORE * STEPS and not Run(copy).finished
    extend(copy, MORE, tiny_images())  # the same command again: nothing to prepare
    run = tiny_run(copy, epochs=MORE)
    assert told(run) == told(extended) and run.recipe == extended.recipe
    ours, theirs = weights_of(run), weights_of(extended)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("moment", ["checkpoints.save", "write_file"])
def test_an_extension_that_is_killed_while_it_is_prepared_is_prepared_again(moment, copy, extended, monkeypatch):
    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"diptych.training.extend.{moment}", dies)
        with pytest.raises(KeyboardInterrupt):
            extend(copy, MORE, tiny_images())
    extend(copy, MORE, tiny_images())
    assert told(tiny_run(copy, epochs=MORE)) == told(extended)


def test_an_extended_run_can_be_extended_again(extended, tmp_path):
    folder = Path(shutil.copytree(extended.folder, tmp_path / "run"))
    extend(folder, MORE + 1, tiny_images())
    run = tiny_run(folder, epochs=MORE + 1)
    assert run.recipe["extended"] == [{"from": EPOCHS, "to": MORE}, {"from": MORE, "to": MORE + 1}]
    assert run.lines("step")[-1]["step"] == (MORE + 1) * STEPS


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("epochs", [1, EPOCHS])
def test_fewer_epochs_are_refused(epochs, copy):
    before = files_of(copy)
    with pytest.raises(RecipeError, match=f"has {EPOCHS} epochs: extend it to more than that, not to {epochs}"):
        extend(copy, epochs, tiny_images())
    assert files_of(copy) == before


def test_what_cannot_be_extended_is_refused_and_left_as_it_is(copy, tmp_path):
    recipe, before = Run(copy).recipe, files_of(copy)
    with pytest.raises(CheckpointError, match=r"another recipe \(pretrain.seed: 0 -> 1\)"):
        extend(copy, MORE, tiny_images(), recipe | {"pretrain": recipe["pretrain"] | {"seed": 1, "epochs": MORE}})
    with pytest.raises(CheckpointError, match="other images"):
        extend(copy, MORE, tiny_images(36))
    with pytest.raises(DataError, match="not a run folder"):
        extend(tmp_path / "none", MORE, tiny_images())
    assert files_of(copy) == before
    run = tiny_run(tmp_path / "early", stopping=EarlyStop("loss"))
    with pytest.raises(RecipeError, match="early stopping"):
        extend(run.folder, MORE, tiny_images())


def test_a_run_that_has_not_finished_is_resumed_first(copy):
    Run(copy).rewind(5)
    with pytest.raises(CheckpointError, match="has not finished its 3 epochs: continue it with --resume"):
        extend(copy, MORE, tiny_images())


def test_the_command_extends_a_run(photos, tmp_path, capsys):  # noqa: F811
    words = ["pretrain", str(photos), "--recipe", "demo", "--out", str(tmp_path / "run"), *SMALL]
    assert diptych(capsys, *words)[0] == 0
    code, _, told_ = diptych(capsys, *words, "--extend", "1")
    assert code == 2 and "extend it to more than that" in told_
    code, _, told_ = diptych(capsys, *words, "--extend", "2", "optimizer.lr=0.1")
    assert code == 4 and "optimizer.lr: 0.002 -> 0.1" in told_
    assert diptych(capsys, *words, "--extend", "2", "--overwrite")[0] == 2
    for _ in range(2):  # again, it is finished: nothing is done
        assert diptych(capsys, *words, "--extend", "2")[0] == 0
        run = Run(tmp_path / "run")
        assert [line["epoch"] for line in run.lines("epoch")] == [1, 2] and run.recipe["pretrain"]["epochs"] == 2
    assert diptych(capsys, *words, "--resume", "pretrain.epochs=2")[0] == 0


def test_weights_of_another_run_are_where_training_starts(finished, tmp_path):
    method = tiny_method()
    projector = {key: value.clone() for key, value in method.projector.state_dict().items()}
    origin = start_encoder(method.encoder, finished)
    trained = load(finished, TinyEncoder()).encoder.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in method.encoder.state_dict().items())
    assert all(torch.equal(value, projector[key]) for key, value in method.projector.state_dict().items())
    assert origin["folder"] == str(finished) and len(origin["sha256"]) == 64
    run = tiny_run(tmp_path / "new", method, record={"pretrain": {"epochs": EPOCHS}, "start_from": origin})
    start = load(run.folder / "untrained", TinyEncoder()).encoder.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in start.items())
    assert run.recipe["start_from"] == origin


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "small-stride2"}, r"holds another network \(stem small there, small-stride2 here\)"),
        ({"stem": "small", "channels": (8, 8, 8, 8)}, "channels"),
        ({"name": "convnext_atto", "depths": (1, 1, 1, 1)}, "name resnet18 there, convnext_atto here"),
    ],
)
def test_an_encoder_of_another_architecture_is_refused(options, message, tmp_path):
    from diptych.networks.inference import Preprocessing
    from diptych.runs.encoder import save_encoder

    old = encoder("resnet18", "small", 16, channels=(4, 4, 4, 4))
    save_encoder(tmp_path / "old", old, Preprocessing(16, (0.5,) * 3, (0.5,) * 3))
    options = {"name": "resnet18", "channels": (4, 4, 4, 4), "size": 32} | options
    if options["name"] != "resnet18":
        del options["channels"]
    with pytest.raises(CheckpointError, match=message):
        start_encoder(encoder(**options), tmp_path / "old")
    start_encoder(
        encoder("resnet18", "small", 32, channels=(4, 4, 4, 4)), tmp_path / "old"
    )  # another size is no obstacle
    with pytest.raises(CheckpointError, match="holds no encoder"):
        start_encoder(old, tmp_path)
    data = bytearray((tmp_path / "old" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "old" / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        start_encoder(old, tmp_path / "old")


def test_the_command_starts_from_a_run_and_resumes_without_it(photos, tmp_path, capsys):  # noqa: F811
    words = ["pretrain", str(photos), "--recipe", "demo", *SMALL]
    assert diptych(capsys, *words, "--out", str(tmp_path / "old"))[0] == 0
    later = [*words, "--out", str(tmp_path / "new"), "--start-from", str(tmp_path / "old"), "method.name=simsiam",
             "method.predictor=8", "pretrain.seed=1"]  # fmt: skip
    code, _, told_ = diptych(capsys, *later)
    assert code == 0, told_
    old, start = load(tmp_path / "old"), load(tmp_path / "new" / "untrained")
    x = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    assert torch.equal(old(x), start(x))
    assert load(tmp_path / "new").untrained() is None and load(tmp_path / "old").untrained() is not None
    assert Run(tmp_path / "new").recipe["start_from"]["folder"] == str(tmp_path / "old")
    shutil.rmtree(tmp_path / "old")
    shutil.rmtree(tmp_path / "new" / "checkpoints")  # as if it was killed before its first checkpoint
    os.remove(tmp_path / "new" / "encoder" / "config.json")
    before = weights_of_folder(tmp_path / "new" / "encoder")
    code, _, told_ = diptych(capsys, *later, "--resume")
    assert code == 0, told_
    assert before == weights_of_folder(tmp_path / "new" / "encoder")
    code, _, told_ = diptych(capsys, *later[:-3], "--overwrite")
    assert code == 4 and "holds no encoder" in told_


def weights_of_folder(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_method_of_ones_own_can_start_from_a_folder(finished):
    method = BarlowTwins(TinyEncoder(), projector=(16, 16))
    start_encoder(method.encoder, finished / "encoder")
    trained = load(finished, TinyEncoder()).encoder.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in method.encoder.state_dict().items())
