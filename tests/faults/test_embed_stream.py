"""Embedding as a stream: recorded in blocks, resumed after any end, flat in memory, never over anything."""

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import own_process
import pytest
import torch
from fake_source import Fake
from spoiled import diptych as command
from spoiled import photographs, refusal
from struck import in_own_process
from torch import nn

import diptych
from diptych.base.errors import CheckpointError, DataError, OutputError
from diptych.base.signals import Preempted
from diptych.commands import cli
from diptych.data.images import images
from diptych.embeddings import writer as writer_file
from diptych.embeddings.store import load_embeddings
from diptych.embeddings.writer import Entry, Writer
from diptych.networks import inference
from diptych.networks.inference import Preprocessing
from diptych.runs.encoder import Trained, save_encoder

QUIET = {"device": "cpu", "show": False}
COUNT = 1500  # three batches


class Mean(nn.Module):
    """(N, 3, 4, 4) -> (N, 3), and an end after `calls` batches."""

    def __init__(self, calls: float = np.inf, end=lambda: None, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([scale]))
        self.calls, self.end = calls, end

    def forward(self, pixels):
        self.calls -= 1
        if self.calls < 0:
            self.end()
        return pixels.mean((2, 3)) * self.weight


def mean(*arguments, **options) -> Trained:
    return Trained(Mean(*arguments, **options), Preprocessing(4))


def photos(count: int = COUNT, **options):
    """Image 700 cannot be read; labels are the parity."""
    return images(Fake(count, bad={700}, label=lambda i: "odd" if i % 2 else "even"), size=4, resident=False, **options)


def stop():
    raise Preempted("SIGTERM: stopped; run the same command again")


@pytest.fixture
def blocks(monkeypatch):
    """Every batch is a block."""
    monkeypatch.setattr(writer_file, "BLOCK_IMAGES", 512)


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("complete") / "vectors"
    diptych.embed(mean(), photos(), out=folder, source="here", **QUIET)
    return folder


@pytest.fixture
def begun(tmp_path, blocks) -> Path:
    """Stopped by SIGTERM in the third batch."""
    folder = tmp_path / "vectors"
    with pytest.raises(Preempted) as end:
        diptych.embed(mean(2, stop), photos(), out=folder, source="here", **QUIET)
    assert end.value.message == f"SIGTERM: stopped; 1,024 images in {folder} are embedded: run again with --resume"
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_folder_says_what_made_it(complete):
    saved = load_embeddings(complete)
    pixels = photos(10).pixels()
    torch.testing.assert_close(saved.vectors[:10], pixels.float().mean((2, 3)) / 255)
    expected = [None if i == 700 else i - (i > 700) for i in range(COUNT)]
    assert [row["row"] for row in saved.index] == expected
    assert [row["label"] for row in saved.index[:3]] == ["even", "odd", "even"]
    assert "not an image" in saved.index[700]["error"] and saved.index.of_row(700)["key"] == "fake/701"
    meta = saved.meta
    assert (meta["images"], meta["rows"], meta["width"], meta["failed"]) == (COUNT, COUNT - 1, 3, 1)
    assert meta["preprocessing"] == {"size": 4, "mean": [0, 0, 0], "std": [1, 1, 1], "resize": None}
    assert meta["l2_normalized"] is False and meta["source"] == "here" and meta["diptych"]
    assert meta["images_sha256"] == photos().fingerprint and len(meta["encoder_sha256"]) == 64
    assert sorted(contents(complete)) == ["index.jsonl", "meta.json", "vectors.npy"]


def test_any_numpy_maps_the_vectors(complete):
    """Without Diptych; and what is changed in memory changes no file."""
    array = np.load(complete / "vectors.npy", mmap_mode="r", allow_pickle=False)
    assert array.shape == (COUNT - 1, 3) and array.dtype == np.float32 and array.flags.c_contiguous
    saved = load_embeddings(complete)
    saved.vectors[0] = 9
    assert not np.array_equal(saved.vectors[0], array[0])


def test_the_weights_of_a_folder_and_of_memory_have_one_hash(tmp_path):
    trained = mean()
    save_encoder(tmp_path / "encoder", trained.encoder, trained.preprocessing)
    loaded = diptych.load(tmp_path / "encoder", Mean())
    for name, encoder in (("a", trained), ("b", loaded)):
        diptych.embed(encoder, photos(3), out=tmp_path / name, **QUIET)
    a, b = (load_embeddings(tmp_path / name).meta for name in "ab")
    assert a["encoder_sha256"] == b["encoder_sha256"] and a["encoder"] == "Mean" and b["encoder"].endswith("encoder")


def test_a_stopped_embedding_goes_on_to_the_same_bytes(begun, complete):
    assert sorted(contents(begun)) == ["index.jsonl", "progress.json", "vectors.npy"]
    encoder = mean()
    vectors = diptych.embed(encoder, photos(), out=begun, resume=True, source="here", **QUIET)
    assert encoder.encoder.calls == np.inf and contents(begun) == contents(complete)
    assert torch.equal(vectors, load_embeddings(complete).vectors)
    calls = mean(0, stop)  # it would end at the first image
    assert torch.equal(diptych.embed(calls, photos(), out=begun, resume=True, source="elsewhere", **QUIET), vectors)
    assert contents(begun) == contents(complete), "complete: nothing is embedded again"


def test_what_is_recorded_is_not_embedded_again(begun):
    encoder = mean(1, stop)  # one batch is left
    assert len(diptych.embed(encoder, photos(), out=begun, resume=True, **QUIET)) == COUNT - 1


def kill_at(folder: str, moment: int) -> None:
    """For a process of its own: die by SIGKILL at the given write, flush or rename of the writer."""
    writer_file.BLOCK_IMAGES, done = 512, 0
    fsync = os.fsync

    def strike(*arguments):
        nonlocal done
        done += 1
        if done == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return fsync(*arguments)

    os.fsync = strike
    diptych.embed(mean(), photos(), out=folder, source="here", **QUIET)


@pytest.mark.parametrize(
    "moment", [1, 17, *(pytest.param(moment, marks=pytest.mark.slow) for moment in (3, 4, 5, 9, 15))]
)
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(moment, tmp_path, complete):
    code = in_own_process(kill_at, str(tmp_path / "vectors"), moment)
    assert code == -signal.SIGKILL
    if moment < 17:  # then meta.json was there
        with pytest.raises((DataError, OutputError)):
            load_embeddings(tmp_path / "vectors")
    diptych.embed(mean(), photos(), out=tmp_path / "vectors", resume=True, source="here", **QUIET)
    assert contents(tmp_path / "vectors") == contents(complete)


@pytest.mark.parametrize(
    ("encoder", "source", "message"),
    [
        (mean(scale=2.0), photos, "encoder_sha256: "),
        (Trained(Mean(), Preprocessing(4, mean=(0.5,) * 3)), photos, "preprocessing: "),
        (mean(), lambda: photos(COUNT + 1), "images_sha256: "),
        (mean(), lambda: photos(labels="none"), "labelled: True -> False"),
    ],
)
def test_other_settings_are_refused_and_nothing_changes(begun, complete, encoder, source, message):
    done = begun.with_name("done")
    shutil.copytree(complete, done)
    for folder in (begun, done):
        before = contents(folder)
        with pytest.raises(CheckpointError, match=rf"was started with other settings \({message}") as end:
            diptych.embed(encoder, source(), out=folder, resume=True, **QUIET)
        assert end.value.exit_code == 4 and contents(folder) == before


def test_without_resume_an_unfinished_folder_is_refused_at_once(begun):
    before = contents(begun)
    encoder = mean(0, stop)
    with pytest.raises(OutputError, match="holds an unfinished embedding; continue it with --resume") as end:
        diptych.embed(encoder, photos(), out=begun, **QUIET)
    assert end.value.exit_code == 6 and contents(begun) == before
    with pytest.raises(DataError, match="has not finished; run `diptych embed` again with --resume"):
        load_embeddings(begun)


def test_resume_is_not_a_licence_to_write_over_a_folder(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not empty"):
        diptych.embed(mean(), photos(), out=tmp_path, resume=True, **QUIET)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    diptych.embed(mean(), photos(5), out=tmp_path / "new", resume=True, **QUIET)  # nothing to continue: it begins
    assert load_embeddings(tmp_path / "new").meta["rows"] == 5


def spoil_byte(folder: Path):
    data = bytearray((folder / "vectors.npy").read_bytes())
    data[200] ^= 1
    (folder / "vectors.npy").write_bytes(data)


def spoil_length(folder: Path):
    os.truncate(folder / "index.jsonl", 100)


def spoil_counts(folder: Path):
    progress = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps(progress | {"recorded": [-1, 2]}))


def spoil_progress(folder: Path):
    (folder / "progress.json").write_text("{")


def spoil_format(folder: Path):
    progress = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps(progress | {"format": 2}))


@pytest.mark.parametrize("spoil", [spoil_byte, spoil_length, spoil_counts, spoil_progress, spoil_format])
def test_a_damaged_beginning_is_not_continued(begun, spoil):
    spoil(begun)
    before = contents(begun)
    with pytest.raises(CheckpointError, match="vectors") as end:
        diptych.embed(mean(), photos(), out=begun, resume=True, **QUIET)
    assert end.value.exit_code == 4 and "\n" not in str(end.value)
    assert {name: len(data) for name, data in contents(begun).items()} == {n: len(d) for n, d in before.items()}


def test_a_complete_folder_of_another_version_is_named(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "vectors")
    meta = json.loads((folder / "meta.json").read_text())
    for version in (2, None):
        (folder / "meta.json").write_text(json.dumps(meta | {"format": version}))
        with pytest.raises(DataError, match="this version of diptych reads 1; embed again"):
            load_embeddings(folder)
        with pytest.raises(CheckpointError, match="choose another --out"):
            diptych.embed(mean(), photos(), out=folder, resume=True, **QUIET)


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    with Writer(tmp_path / "vectors", {}) as first:
        first.add([Entry("a", None)], np.ones((1, 3)))
        with pytest.raises(OutputError, match="another process is writing to"):
            Writer(tmp_path / "vectors", {}, resume=True)
        first.finish({})
    assert load_embeddings(tmp_path / "vectors").vectors.tolist() == [[1, 1, 1]]


def test_an_error_before_the_first_block_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="too many"):
        diptych.embed(
            mean(), images(Fake(600, bad=range(200)), size=4, resident=False), out=tmp_path / "vectors", **QUIET
        )
    with pytest.raises(KeyboardInterrupt):
        diptych.embed(
            mean(1, lambda: (_ for _ in ()).throw(KeyboardInterrupt)), photos(), out=tmp_path / "vectors", **QUIET
        )
    assert list(tmp_path.iterdir()) == []


def test_images_decoded_before_are_embedded_alike(tmp_path, complete):
    """A resident set has removed its bad images when it is embedded."""
    resident = images(Fake(COUNT, bad={700}, label=lambda i: "odd" if i % 2 else "even"), size=4, resident=True)
    diptych.embed(mean(), resident, out=tmp_path / "vectors", source="here", **QUIET)
    mine, theirs = load_embeddings(tmp_path / "vectors"), load_embeddings(complete)
    assert torch.equal(mine.vectors, theirs.vectors)
    assert [row["key"] for row in mine.index] == [row["key"] for row in theirs.index] and mine.meta == theirs.meta


def resident_mebibytes() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def flat_memory(folder: Path, count: int, width: int) -> float:
    """MiB of growth after the first tenth (five batches at least) of embedding `count` images into `width` numbers."""
    memory = []

    class Wide(nn.Module):
        def forward(self, pixels):
            memory.append(resident_mebibytes())
            return pixels.mean((2, 3))[:, :1].expand(-1, width)

    found = images(Fake(count), size=4, resident=False)
    diptych.embed(Trained(Wide(), Preprocessing(4)), found, out=folder, **QUIET)
    tenth = max(5, len(memory) // 10)
    return max(memory[tenth:]) - max(memory[:tenth])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(("count", "width"), [(10_000, 4096), pytest.param(200_000, 1024, marks=pytest.mark.slow)])
def test_memory_is_flat(count, width, tmp_path, blocks):
    grown = flat_memory(tmp_path / "vectors", count, width)
    size = (tmp_path / "vectors" / "vectors.npy").stat().st_size / 2**20
    print(f"{count:,} images, {size:.0f} MiB of vectors: memory grew by {grown:.1f} MiB")
    assert size > 150 and grown < 24, f"{grown:.1f} MiB"


# ---- the command


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = diptych.encoder("resnet18", "small", 16, channels=(4, 4, 4, 4))
    return save_encoder(tmp_path_factory.mktemp("network") / "encoder", network, Preprocessing(16))


def struck_command(number: int, words: list[str]) -> None:
    """For a process of its own: the command, with a signal before its second batch."""
    prepare, calls = inference.prepare, itertools.count(1)

    def struck(*arguments):
        if next(calls) == 2:
            os.kill(os.getpid(), number)
        return prepare(*arguments)

    writer_file.BLOCK_SECONDS, inference.prepare, sys.argv = 0, struck, ["diptych", *words]
    cli.main()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGKILL, -9)],
)
def test_a_signal_and_then_resume(number, code, network, tmp_path):
    source = tmp_path / "pixels.npy"
    np.save(source, np.random.default_rng(0).integers(0, 256, (1200, 16, 16, 3), dtype=np.uint8))
    words = "embed", network, source, "--out", tmp_path / "vectors", "--device", "cpu"
    said = tmp_path / "said"
    assert own_process.run(struck_command, int(number), [*map(str, words)], said=said) == code, said.read_text()
    if number == signal.SIGTERM:
        line = refusal(said.read_text())
        assert (
            line
            == f"diptych: SIGTERM: stopped; 512 images in {tmp_path / 'vectors'} are embedded: run again with --resume"
        )
    assert sorted(contents(tmp_path / "vectors")) == ["index.jsonl", "progress.json", "vectors.npy"]
    assert command(*words)[0] == 6
    code, out, _ = command(*words, "--resume")
    assert code == 0 and "1200 x 4 float32, 0 images failed" in out
    assert command("embed", network, source, "--out", tmp_path / "once", "--device", "cpu")[0] == 0
    assert contents(tmp_path / "vectors") == contents(tmp_path / "once")
    code, _, err = command(*words, "--resume")
    assert code == 0 and "is complete; nothing was embedded" in err


def test_the_command_embeds_without_keeping_images_and_says_which_failed(network, tmp_path):
    source = photographs(tmp_path / "photos")
    (source / "cat" / "03.jpg").write_bytes(b"")
    code, out, err = command("embed", network, source, "--out", tmp_path / "vectors")
    assert code == 0 and "23 x 4 float32, 1 image failed" in out
    assert "1 of 24 images cannot be read and have no vector, first: cat/03.jpg (empty file)" in err
