"""What `diptych export` writes is opened by other programs, in processes that cannot import Diptych."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_run import fake_run
from PIL import Image
from readers import MEAN, STD, photographs, python_without, snippets, squares, trained_encoder

import diptych
from diptych.data.images import images

SIZE, OPENED = 64, 72
CLOSE = 1e-5  # of the largest number of an embedding
READERS = ["timm", "transformers", "segmentation-models-pytorch", "torchvision", "ONNX", "torch.export"]
# The card's program, on one image after the other; what it leaves in `vector` is kept.
EACH = """
import shutil, sys
import numpy as np
vectors = []
for number in range({count}):
    shutil.copy(f"{kind}-{{number}}.png", "photo.jpg")
    exec(compile({program!r}, "card", "exec"), globals())
    vectors.append(np.asarray(vector)[0])
np.save("vectors.npy", np.stack(vectors))
assert not [name for name in sys.modules if name.partition(".")[0] == "diptych"]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """narrow/ and wide/: the export of a narrow ResNet-18, and the weights of a wide one for torchvision; original/, both."""
    root = tmp_path_factory.mktemp("exports")
    narrow = trained_encoder(
        root / "original-narrow", "resnet18", SIZE, OPENED, stem="standard", channels=(8, 16, 24, 32)
    )
    wide = trained_encoder(root / "original-wide", "resnet18", SIZE, OPENED, stem="standard")
    photos = images(squares(OPENED))
    diptych.export(
        narrow, ["onnx", "timm", "torch-export", "transformers"], out=root / "narrow", images=photos, show=False
    )
    diptych.export(wide, "torchvision", out=root / "wide", images=photos, show=False)
    return root


def test_diptych_is_hidden(tmp_path):
    assert python_without("try: import diptych\nexcept ModuleNotFoundError as error: print(error)", tmp_path) == (
        "Diptych is hidden from this process\n"
    )


def opened(
    place: Path, tmp_path: Path, reader: str, program: str, kind: str = "square"
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of the photographs by a program of the card, and by our encoder."""
    name = "wide" if reader == "torchvision" else "narrow"
    here = tmp_path / "export"
    shutil.copytree(place / name, here)
    pictures = photographs() if kind == "photo" else [Image.fromarray(array) for array in squares(OPENED)]
    for number, picture in enumerate(pictures):
        picture.save(here / f"{kind}-{number}.png")
    python_without(EACH.format(count=len(pictures), kind=kind, program=program), here)
    trained = diptych.load(place / f"original-{name}")
    if kind == "photo":
        (here / "photos").mkdir()
        for number, picture in enumerate(pictures):
            picture.save(here / "photos" / f"{number}.png")
        ours = trained(images(here / "photos", size=OPENED).pixels())
    else:
        ours = trained(torch.from_numpy(squares(OPENED)).permute(0, 3, 1, 2))
    return np.load(here / "vectors.npy"), ours.numpy()


def test_the_card_has_a_program_for_each_reader(place):
    assert sorted([*snippets(place / "narrow"), *snippets(place / "wide")]) == sorted(READERS)
    assert [len(programs) for programs in snippets(place / "narrow").values()] == [1] * 5


@pytest.mark.parametrize("reader", [reader for reader in READERS if reader != "segmentation-models-pytorch"])
def test_each_reader_gives_our_vectors(place, tmp_path, reader):
    (program, *_) = snippets(place / ("wide" if reader == "torchvision" else "narrow"))[reader]
    vectors, ours = opened(place, tmp_path, reader, program)
    assert vectors.shape == ours.shape and vectors.dtype == np.float32
    assert np.abs(vectors - ours).max() <= CLOSE * np.abs(ours).max()
    assert np.abs(ours - ours[::-1]).max() > 100 * CLOSE * np.abs(ours).max(), "the photographs must differ"


@pytest.mark.slow
def test_the_file_with_preprocessing_takes_bytes(place, tmp_path):
    trained, out = diptych.load(place / "original-narrow"), tmp_path / "place" / "narrow"
    diptych.export(trained, "onnx", out=out, with_preprocessing=True, show=False)
    assert {path.name for path in out.iterdir()} == {"README.md", "encoder-uint8.onnx", "encoder.onnx"}
    (tmp_path / "place" / "original-narrow").symlink_to(place / "original-narrow")
    for kind in ("square", "photo"):
        program, here = snippets(out)["ONNX"][1], tmp_path / kind
        here.mkdir()
        vectors, ours = opened(out.parent, here, "ONNX", program, kind)
        assert np.abs(vectors - ours).max() <= CLOSE * np.abs(ours).max()


def test_segmentation_uses_our_weights(place, tmp_path):
    """The card's program, and then our vectors from the last map of its encoder."""
    (program,) = snippets(place / "narrow")["segmentation-models-pytorch"]
    np.save(tmp_path / "squares.npy", squares(SIZE))
    here = tmp_path / "export"
    shutil.copytree(place / "narrow", here)
    more = """
import numpy as np
pixels = torch.from_numpy(np.load("../squares.npy")).permute(0, 3, 1, 2) / 255
with torch.inference_mode():
    np.save("../vectors.npy", network.encoder((pixels - mean) / std)[-1].mean((2, 3)))
"""
    assert python_without(program + more, here) == "torch.Size([1, 32]) torch.Size([1, 2, 64, 64])\n"
    trained = diptych.Trained(diptych.load(place / "original-narrow").encoder, diptych.Preprocessing(SIZE, MEAN, STD))
    ours = trained(torch.from_numpy(squares(SIZE)).permute(0, 3, 1, 2)).numpy()
    assert np.abs(np.load(tmp_path / "vectors.npy") - ours).max() <= CLOSE * np.abs(ours).max()


def test_photographs_as_they_are_have_our_vectors(place, tmp_path):
    """By the programs that bring their own preprocessing; two of the photographs are oblong."""
    vectors, ours = opened(place, tmp_path, "ONNX", snippets(place / "narrow")["ONNX"][0], "photo")
    assert np.abs(vectors - ours).max() <= CLOSE * np.abs(ours).max()


@pytest.mark.slow
def test_photographs_as_they_are_have_nearly_our_vectors_with_timms_transform(place, tmp_path):
    """It shrinks in one step where ours takes two, and its central square is off by up to one pixel."""
    vectors, ours = opened(place, tmp_path, "timm", snippets(place / "narrow")["timm"][0], "photo")
    cosines = (vectors * ours).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(ours, axis=1)
    assert cosines.min() > 0.98, cosines


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["torch.export", "timm"])
def test_a_run_that_squashes_its_images(tmp_path, reader):
    """Proportions are lost in training, so they must be lost by the reader too."""
    run = fake_run(tmp_path / "run")
    recipe = (run / "recipe.yaml").read_text() + "images: {fit: squash, size: 48}\n"
    (run / "recipe.yaml").write_text(recipe)
    trained_encoder(run / "encoder", "resnet18", 48, stem="standard", channels=(4, 4, 8, 8))
    diptych.export(run, ["timm", "torch-export"], out=tmp_path / "out", show=False)
    picture = photographs()[2]
    picture.save(tmp_path / "out" / "photo-0.png")
    program = snippets(tmp_path / "out")[reader][0]
    python_without(EACH.format(count=1, kind="photo", program=program), tmp_path / "out")
    picture.save(tmp_path / "photo.png")
    ours = diptych.load(run)(images(np.asarray(picture)[None], size=48, fit="squash").pixels()).numpy()
    vectors = np.load(tmp_path / "out" / "vectors.npy")
    cropped = diptych.load(run)(images(np.asarray(picture)[None], size=48).pixels()).numpy()
    far = np.abs(cropped - ours).max()
    assert np.abs(vectors - ours).max() <= (CLOSE * np.abs(ours).max() if reader == "torch.export" else far / 4)


def test_onnx_needs_neither_torch_nor_timm(place, tmp_path):
    program = "import sys; sys.modules['torch'] = sys.modules['timm'] = None\n" + snippets(place / "narrow")["ONNX"][0]
    here = tmp_path / "export"
    shutil.copytree(place / "narrow", here)
    photographs()[0].save(here / "photo.jpg")
    assert python_without(program, here) == "(1, 32)\n"


def test_the_folder_holds_what_its_card_says(place):
    text = (place / "narrow" / "README.md").read_text()
    names = {path.name for path in (place / "narrow").iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "encoder.onnx",
        "encoder.pt2",
        "model.safetensors",
    }
    assert {path.name for path in (place / "wide").iterdir()} == {"README.md", "model.safetensors"}
    assert set(re.findall(r"^\| (\S+) \| `[0-9a-f]{64}` \|", text, re.MULTILINE)) == names - {"README.md"}
    assert sorted(path.name for path in place.iterdir()) == ["narrow", "original-narrow", "original-wide", "wide"]


def test_any_number_of_images(place):
    onnxruntime = pytest.importorskip("onnxruntime")
    program = torch.export.load(place / "narrow" / "encoder.pt2").module()
    session = onnxruntime.InferenceSession(place / "narrow" / "encoder.onnx", providers=["CPUExecutionProvider"])
    encoder = diptych.load(place / "original-narrow").encoder
    for count in (1, 2, 7):
        pixels = torch.rand(count, 3, SIZE, SIZE)
        with torch.no_grad():
            ours = encoder(pixels)
            torch.testing.assert_close(program(pixels), ours, atol=1e-5, rtol=1e-5)
        (vectors,) = session.run(None, {"images": pixels.numpy()})
        torch.testing.assert_close(torch.from_numpy(vectors), ours, atol=1e-5, rtol=1e-4)
