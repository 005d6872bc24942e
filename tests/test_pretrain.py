"""The loop: what a run leaves, and that stopping it, by whatever means, changes nothing in how it ends."""

import json
from pathlib import Path

import numpy as np
import own_process
import pytest
import torch
from tiny import SIGKILL, SIGTERM, STEPS, TOTAL, struck_run, tiny_images, tiny_method, tiny_run, told, weights_of

from diptych.base.errors import CheckpointError, DivergedError, OutputError, RecipeError
from diptych.base.random_at import random_at
from diptych.runs import checkpoints
from diptych.runs.encoder import load
from diptych.runs.run import Run
from diptych.training.early_stop import EarlyStop
from diptych.training.ends import view_arrays
from diptych.training.schedules import warmup_cosine
from diptych.views import Normalize, RandomResizedCrop, View

HERE = Path(__file__).parent


def test_processes_of_a_tests_own_import_torch_once():
    assert own_process.run(own_process.require_preloaded) == 0


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> Run:
    """A run that nothing disturbed."""
    return tiny_run(tmp_path_factory.mktemp("runs") / "quiet", checkpoint_minutes=5.0)


def assert_same(run: Run, quiet: Run) -> None:
    ours, theirs = weights_of(run), weights_of(quiet)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert told(run) == told(quiet)
    assert (run.folder / "encoder" / "model.safetensors").read_bytes() == (
        quiet.folder / "encoder" / "model.safetensors"
    ).read_bytes()


def test_a_run_leaves_what_it_promises(quiet):
    names = {path.name for path in quiet.folder.iterdir()} - {".lock"}
    assert names == {
        "recipe.yaml",
        "log.jsonl",
        "environment.json",
        "evaluations.jsonl",
        "checkpoints",
        "encoder",
        "untrained",
        "pictures",
    }
    steps = quiet.lines("step")
    assert [line["step"] for line in steps] == list(range(1, TOTAL + 1))
    assert steps[-1]["progress"] == 1 and set(steps[-1]["parts"]) == {"on_diagonal", "off_diagonal"}
    assert [line["epoch"] for line in quiet.lines("epoch")] == [1, 2, 3]
    assert quiet.lines("epoch")[0]["loss"] == pytest.approx(np.mean([line["loss"] for line in steps[:STEPS]]))
    rates = [0.5 * warmup_cosine(0.2)(step / TOTAL) for step in range(TOTAL)]
    assert [line["lr"][0] for line in steps] == pytest.approx(rates)
    assert quiet.finished
    environment = json.loads((quiet.folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    with np.load(quiet.folder / "pictures" / "views.npz") as views:
        assert views["originals"].shape == views["view_0"].shape == (12, 12, 12, 3)
        assert (views["view_0"] != views["view_1"]).any()
    with np.load(quiet.folder / "pictures" / "correlation.npz") as picture:
        assert picture["matrix"].shape == (16, 16)


def test_views_are_kept_as_pictures_one_array_a_view():
    """Any number, each of its own size, drawn at the address of step 0."""
    pixels = next(tiny_images().read(torch.arange(5), 5))[1]
    views = [View([RandomResizedCrop(size), Normalize((0.5,) * 3, (0.2,) * 3)]) for size in (12, 12, *[6] * 6)]
    arrays = view_arrays(pixels, views, seed=3)
    assert list(arrays) == ["originals", *(f"view_{index}" for index in range(8))]
    assert np.array_equal(arrays["originals"], pixels.permute(0, 2, 3, 1))
    for index, view in enumerate(views):
        crops = View(view.operations[:1])(pixels, random_at(3, "views", 0, index)).permute(0, 2, 3, 1)
        assert arrays[f"view_{index}"].shape == (5, view.size, view.size, 3)
        assert np.abs(arrays[f"view_{index}"] - 255 * crops.clamp(0, 1).numpy()).max() <= 0.51


def test_training_learns_and_keeps_the_untrained_encoder(quiet):
    losses = [line["loss"] for line in quiet.lines("epoch")]
    assert losses[-1] < losses[0]
    start = checkpoints.read_tensors(quiet.folder / "untrained" / "model.safetensors")
    for name, value in tiny_method().encoder.state_dict().items():
        assert torch.equal(start[name], value)
    trained = load(quiet, tiny_method().encoder)
    assert not torch.equal(trained.encoder[0].weight, start["0.weight"])
    assert trained.preprocessing.size == 12 and trained.preprocessing.mean == (0.5,) * 3


@pytest.mark.parametrize("step", [0, 5, pytest.param(7, marks=pytest.mark.slow)])
def test_killed_at_any_step_it_ends_bit_equal(step, quiet, tmp_path):
    assert own_process.run(struck_run, str(tmp_path / "run"), step, SIGKILL) == -SIGKILL
    assert not Run(tmp_path / "run").finished
    run = tiny_run(tmp_path / "run", checkpoint_minutes=5.0)
    assert_same(run, quiet)


def test_asked_to_stop_it_saves_and_exits_75(quiet, tmp_path):
    assert own_process.run(struck_run, str(tmp_path / "run"), 4, SIGTERM) == 75
    assert checkpoints.newest(tmp_path / "run" / "checkpoints").name == "step_0000005"
    assert_same(tiny_run(tmp_path / "run"), quiet)


def test_a_finished_run_is_not_run_again(quiet):
    before = weights_of(quiet), told(quiet)
    again = tiny_run(quiet.folder)
    assert told(again) == before[1]
    assert_same(again, quiet)


def test_folders_are_never_overwritten_silently(quiet, tmp_path):
    with pytest.raises(OutputError, match="--resume .* --overwrite"):
        tiny_run(quiet.folder, resume=False)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("keep me")
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(OutputError, match="not empty and not a run"):
            tiny_run(tmp_path / "letters", **options)
    assert (tmp_path / "letters" / "dear.txt").read_text() == "keep me"


def test_overwrite_starts_anew(tmp_path):
    first = tiny_run(tmp_path / "run", epochs=1)
    second = tiny_run(tmp_path / "run", epochs=2, resume=False, overwrite=True)
    assert [line["epoch"] for line in second.lines("epoch")] == [1, 2]
    assert first.folder == second.folder


def test_resume_refuses_another_recipe_and_other_images(quiet):
    with pytest.raises(CheckpointError, match="pretrain.seed: 0 -> 1"):
        tiny_run(quiet.folder, seed=1)
    with pytest.raises(CheckpointError, match="images.count: 48 -> 47"):
        tiny_run(quiet.folder, photos=tiny_images().subset(range(47)))
    with pytest.raises(CheckpointError, match="other images"):
        tiny_run(quiet.folder, photos=tiny_images().subset(list(range(1, 48)) + [0]))


def test_a_second_writer_is_refused(tmp_path):
    first = Run.start(tmp_path / "run", {"a": 1})
    with pytest.raises(OutputError, match=r"another run is writing .*process \d+ on"):
        Run.start(tmp_path / "run", {"a": 1}, resume=True)
    first.release()
    Run.start(tmp_path / "run", {"a": 1}, resume=True).release()


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path, quiet):
    method = tiny_method()
    method.nan_at = 6
    with pytest.raises(DivergedError, match="loss nan .* at step 6; step 5 is saved"):
        tiny_run(tmp_path / "run", method, checkpoint_minutes=5.0)
    newest = checkpoints.newest(tmp_path / "run" / "checkpoints")
    assert newest.name == "step_0000006"  # six steps are done: 0 to 5
    crash = json.loads((tmp_path / "run" / "crash" / "step_0000006_rank_0.json").read_text())
    assert crash["loss"] == "nan" and crash["step"] == 6
    assert_same(tiny_run(tmp_path / "run", checkpoint_minutes=5.0), quiet)  # running statistics too were put back


def test_early_stopping_restores_the_best_weights(tmp_path):
    readings = iter([9.0, 3.0, 1.0, 2.0, 2.5, 0.0])
    seen = []

    def watch(step, encoder):
        seen.append(encoder[0].weight.clone())
        return {"score": next(readings)}

    run = tiny_run(tmp_path / "run", epochs=5, watch=[watch], stopping=EarlyStop("score", patience=2))
    assert [line["epoch"] for line in run.lines("epoch")] == [
        1,
        2,
        3,
        4,
    ]  # best in epoch 2, two worse ones after it
    assert run.lines("end")[0]["best_epoch"] == 2
    kept = checkpoints.read_tensors(run.folder / "encoder" / "model.safetensors")["0.weight"]
    assert torch.equal(kept, seen[2]) and not torch.equal(kept, seen[4])


def test_early_stopping_waits_for_readings_and_refuses_what_nothing_reads(tmp_path):
    readings = iter([0.0, 3.0, 2.0])
    options = dict(watch=[lambda step, encoder: {"score": next(readings)}], watch_epochs=2, epochs=4)
    stopped = tiny_run(tmp_path / "run", stopping=EarlyStop("score", patience=1), **options)
    assert len(stopped.lines("epoch")) == 4  # read in epochs 2 and 4
    readings = iter([0.0, 3.0])
    with pytest.raises(
        RecipeError, match="early stopping looks at 'scoer', which no watch returns; there are loss, score"
    ):
        tiny_run(tmp_path / "other", stopping=EarlyStop("scoer", patience=1), **options)


def test_the_largest_reading_can_be_the_best(tmp_path):
    readings = iter([0.0, 0.1, 0.5, 0.4])
    stopping = EarlyStop("knn", largest=True, patience=1)
    run = tiny_run(tmp_path / "run", watch=[lambda step, encoder: {"knn": next(readings)}], stopping=stopping)
    assert run.lines("end")[0]["best_epoch"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 64}, "batch_size 64 is larger than the 48 images; use at most 48"),
        ({"batch_size": 1}, "batch_size is 1; it must be at least 2"),
        ({"epochs": 0}, "epochs is 0"),
        ({"precision": "float8"}, "precision is 'float8'; it must be one of float32"),
        ({"device": "tpu"}, "device is 'tpu'; it must be auto"),
    ],
)
def test_impossible_arguments_are_told_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        tiny_run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_streamed_images_train_as_resident_ones(quiet, tmp_path):
    assert_same(tiny_run(tmp_path / "run", photos=tiny_images(resident=False)), quiet)


def test_bfloat16_and_clipping_run(tmp_path):
    run = tiny_run(tmp_path / "run", epochs=1, precision="bfloat16", clip_norm=0.1)
    assert run.finished
    weight = checkpoints.read_tensors(run.folder / "encoder" / "model.safetensors")["0.weight"]
    assert weight.dtype == torch.float32


def test_tensorboard_mirrors_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    run = tiny_run(tmp_path / "run", epochs=1, tensorboard=True, watch=[lambda step, encoder: {"score": 0.5}])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    steps = run.lines("step")
    losses = [(one.step, one.value) for one in seen.Scalars("step/loss")]
    assert losses == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in steps]
    assert {"step/parts/on_diagonal", "watch/score", "epoch/loss"} <= set(seen.Tags()["scalars"])


def test_readme_promise_on_bad_images(tmp_path, quiet):
    """A few bad images are left out before anything is counted; the rest trains."""
    from PIL import Image

    from diptych.data.images import images

    for i, pixels in enumerate(tiny_images().pixels().permute(0, 2, 3, 1).numpy()):
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    (tmp_path / "00.png").write_bytes(b"")
    (tmp_path / "01.png").write_text("<html>")
    photos = images(tmp_path, size=12)
    run = tiny_run(tmp_path / "run", photos=photos, epochs=1)
    assert run.finished and len(photos) == 46
    assert {row["key"] for row in photos.failed} == {"00.png", "01.png"}


def test_the_log_is_on_the_disk_before_a_checkpoint_is(tmp_path, monkeypatch):
    """Else a power cut could leave a checkpoint that has forgotten lines of its own steps, and they are never made again."""
    order = []
    flush, save = Run.flush, checkpoints.save
    monkeypatch.setattr(Run, "flush", lambda run: (order.append("log"), flush(run))[1])
    monkeypatch.setattr(checkpoints, "save", lambda *words: (order.append("checkpoint"), save(*words))[1])
    tiny_run(tmp_path / "run", epochs=1)
    assert order == ["log", "checkpoint"] * (STEPS + 1)


@pytest.mark.parametrize("ends", ["well", "diverged"])
def test_layers_and_random_numbers_are_as_before_the_call(ends, tmp_path):
    """For the time of training, batch norms share statistics by groups and convolutions are quick ones."""
    method = tiny_method()
    method.statistics_rows, method.nan_at = 4, 5 if ends == "diverged" else -1
    before, random, global_state = [type(layer) for layer in method.modules()], torch.get_rng_state(), []
    step = type(method).after_step

    def look(method, kept, progress) -> None:
        global_state.append([type(layer) for layer in method.modules()])
        step(method, kept, progress)

    method.__class__ = type("Looks", (type(method),), {"after_step": look})
    before[0] = type(method)
    if ends == "well":
        tiny_run(tmp_path / "run", method)
    else:
        with pytest.raises(DivergedError):
            tiny_run(tmp_path / "run", method)
    assert all(types != before for types in global_state) and len(global_state) >= 5, "they are exchanged meanwhile"
    assert [type(layer) for layer in method.modules()] == before
    assert torch.equal(torch.get_rng_state(), random)
