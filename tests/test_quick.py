"""The closed-form encoder: what it computes, where it can be used, and how it ends on images that hold nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import diptych
from diptych.base.errors import DataError, OutputError, RecipeError
from diptych.data.images import Images, images
from diptych.embeddings import whitening as whitenings
from diptych.embeddings.scores import knn_accuracy
from diptych.embeddings.whitening import partial_whitening
from diptych.networks.encoders import built_with, encoder
from diptych.networks.inference import Preprocessing, prepare, raw_pixels
from diptych.networks.joined import Described
from diptych.networks.patches import CONTRAST, PatchDictionary, even_pooling
from diptych.training.dictionary import components, learn_dictionary, sample_patches, whitening
from diptych.training.joining import has_maps, joinable
from diptych.training.quick import MOST_ENTRIES, dictionary_network, entries_for, quick


def textures(count: int = 160, size: int = 16, seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Stripes of four directions at random phase, contrast and colour: easy for patches, hard for raw pixels."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:size, :size]
    photos, labels = [], []
    for number in range(count):
        angle = number % 4
        wave = np.cos(np.pi / 4 * angle) * row + np.sin(np.pi / 4 * angle) * column
        stripes = np.sin(2.0 * wave + rng.uniform(0, 6.28))[..., None] * rng.uniform(15, 40, 3)
        noise = rng.normal(0, 40, (size, size, 3))
        photos.append((rng.uniform(70, 180, 3) + stripes + noise).clip(0, 255).astype(np.uint8))
        labels.append(angle)
    return np.stack(photos), labels


@pytest.fixture(scope="module")
def stripes() -> tuple[np.ndarray, list[int]]:
    return textures()


@pytest.fixture(scope="module")
def some(stripes) -> Images:
    """As few of them as an encoder is computed from: where nothing depends on how good it is."""
    return images(stripes[0][:60])


@pytest.fixture(scope="module")
def trained(stripes, tmp_path_factory) -> diptych.Trained:
    # Two of the directions are mirror images of each other, which averaging would make one.
    return quick(images(stripes[0]), out=tmp_path_factory.mktemp("quick") / "run", mirrored=False, show=False)


def test_it_beats_raw_pixels_without_labels(trained, stripes):
    photos, labels = stripes
    others, other_labels = textures(80, seed=1)
    bank, queries = (torch.from_numpy(array).permute(0, 3, 1, 2) for array in (photos, others))
    scores = [
        knn_accuracy(embed(bank), list(map(str, labels)), embed(queries), list(map(str, other_labels)), k=10).accuracy
        for embed in (trained, lambda pixels: raw_pixels(pixels, (0.5,) * 3, (0.25,) * 3))
    ]
    assert scores[0] > 0.95
    assert scores[0] > scores[1] + 0.1


def test_same_images_and_seed_give_the_same_bits(trained, stripes):
    again = quick(images(stripes[0]), mirrored=False, show=False)
    other = quick(images(stripes[0]), mirrored=False, seed=1, show=False)
    weights, repeated, different = (part.encoder.state_dict() for part in (trained, again, other))
    assert all(torch.equal(weights[name], repeated[name]) for name in weights)
    assert not torch.equal(weights["dictionary.weight"], different["dictionary.weight"])


def test_the_patches_are_those_of_the_definition(trained):
    """The first layer by convolutions against contrast normalisation and whitening patch by patch, in float64."""
    network = trained.encoder
    image = torch.rand(1, 3, 16, 16)
    windows = image.double().unfold(2, 6, 1).unfold(3, 6, 1)[0]  # (3, 11, 11, 6, 6)
    patch = windows[:, 4, 7].flatten()
    patch = patch - patch.mean()
    patch = patch * (patch.square().mean() + CONTRAST).rsqrt()
    expected = network.whiten.weight.double().flatten(1) @ patch + network.offset.flatten().double()
    got = network.patches(image)[0, :, 4, 7].double()
    torch.testing.assert_close(got, F.normalize(expected, dim=0), atol=1e-5, rtol=1e-4)


def test_brightness_and_contrast_of_an_image_hardly_matter(trained, stripes):
    pixels = torch.from_numpy(stripes[0]).permute(0, 3, 1, 2)[:20].float()
    darker = (0.6 * pixels + 10).round().to(torch.uint8)
    cosine = F.cosine_similarity(trained(pixels.to(torch.uint8)), trained(darker))
    assert cosine.min() > 0.9


def test_mirror_images_have_the_same_embedding_where_codes_are_averaged(some):
    network = quick(some, mirrored=True, show=False).encoder
    pictures = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(network(pictures), network(pictures.flip(3)), atol=1e-5, rtol=1e-4)


def test_embeddings_do_not_depend_on_the_batch(trained):
    pictures = torch.rand(37, 3, 16, 16)
    together, apart = trained.encoder(pictures), torch.cat([trained.encoder(part) for part in pictures.split(5)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)


def test_a_run_is_loaded_embedded_and_reported(trained, stripes, tmp_path):
    loaded = diptych.load(trained.folder)
    pixels = torch.from_numpy(stripes[0]).permute(0, 3, 1, 2)[:9]
    assert torch.equal(loaded(pixels), trained(pixels))
    assert loaded.built_with["name"] == "patch_dictionary"
    assert diptych.embed(trained.folder, images(stripes[0]), show=False).shape == (160, loaded.encoder.num_features)
    page = diptych.report(trained.folder, tmp_path / "report.html").read_text()
    assert "patch_dictionary" in page or "quick" in page


def test_larger_images_are_shrunk_and_any_size_is_taken(stripes):
    large = np.repeat(np.repeat(stripes[0][:60], 3, 1), 3, 2)  # 48 pixels
    shrunk = quick(images(large), show=False)
    assert shrunk.preprocessing.size == 32
    for size in (9, 13, 20, 40):
        encoder = quick(images(large), size=size, entries=8, show=False)
        assert encoder(torch.from_numpy(large).permute(0, 3, 1, 2)[:3]).isfinite().all()


@pytest.mark.parametrize("keep", ["codes", "both"])
def test_it_exports(some, keep, tmp_path):
    network = quick(some, entries=8, keep=keep, show=False).encoder
    pictures = torch.rand(3, 3, 16, 16)
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(network, (pictures,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "encoder.pt2")
    module = torch.export.load(tmp_path / "encoder.pt2").module()
    for count in (1, 5):
        pictures = torch.rand(count, 3, 16, 16)
        torch.testing.assert_close(module(pictures), network(pictures), atol=1e-5, rtol=1e-4)


def test_it_exports_to_onnx(trained, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path, pictures = tmp_path / "encoder.onnx", torch.rand(3, 3, 16, 16)
    torch.onnx.export(trained.encoder, (pictures,), path, dynamo=True, external_data=False, verbose=False,
                      dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},))  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for count in (1, 5):
        pictures = torch.rand(count, 3, 16, 16)
        (rows,) = session.run(None, {name: pictures.numpy()})
        torch.testing.assert_close(torch.from_numpy(rows), trained.encoder(pictures), atol=1e-5, rtol=1e-4)


def test_codes_and_map_are_kept_as_chosen(some):
    pictures = torch.rand(5, 3, 16, 16)
    both, codes, twins = (quick(some, keep=keep, show=False).encoder(pictures) for keep in ("both", "codes", "twins"))
    torch.testing.assert_close(both, torch.cat([codes, twins], 1))
    assert (codes.shape[1], twins.shape[1]) == (48, 16)


def test_images_without_structure_are_an_error_or_a_collapse(tmp_path):
    plain = np.tile(np.arange(60, dtype=np.uint8)[:, None, None, None], (1, 16, 16, 3))
    with pytest.raises(DataError, match="single colour"):
        quick(images(plain), show=False)
    alike = np.repeat(textures(1)[0], 60, 0)
    trained = quick(images(alike), out=tmp_path / "alike", show=False)
    assert trained(torch.from_numpy(alike).permute(0, 3, 1, 2)).isfinite().all()
    assert '"verdict": "OK"' not in (tmp_path / "alike" / "evaluations.jsonl").read_text()


def test_an_occupied_folder_is_refused_and_a_failure_leaves_none(stripes, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        quick(images(stripes[0]), out=tmp_path / "taken", show=False)
    plain = np.tile(np.arange(60, dtype=np.uint8)[:, None, None, None], (1, 16, 16, 3))
    with pytest.raises(DataError):
        quick(images(plain), out=tmp_path / "new", show=False)
    assert not (tmp_path / "new").exists()


def test_bad_arguments_are_refused_before_anything_is_written(stripes, tmp_path):
    photos = images(stripes[0])
    for arguments in ({"power": 0.7}, {"entries": 10**6}, {"keep": "all"}, {"size": 8}):
        with pytest.raises(RecipeError):
            quick(photos, out=tmp_path / "run", show=False, **arguments)
    with pytest.raises(DataError, match="50 or more"):
        quick(images(stripes[0][:20]), out=tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists()


def test_k_means_finds_directions():
    centres = torch.eye(4)
    rng = torch.Generator().manual_seed(0)
    rows = F.normalize(centres.repeat(100, 1) + 0.05 * torch.randn(400, 4, generator=rng), dim=1)
    layer = torch.nn.Conv2d(4, 8, 1)
    with torch.no_grad():
        learn_dictionary(layer, rows, rng)
    entries = layer.weight.flatten(1)
    torch.testing.assert_close(entries.norm(dim=1), torch.ones(8))
    assert ((entries @ centres.T).max(0).values > 0.99).all()


def test_whitening_and_components_against_numpy():
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 6, generator=rng) @ torch.randn(6, 6, generator=rng)
    mean, weight = whitening(rows, 6, 0.0)
    torch.testing.assert_close(torch.cov(((rows - mean) @ weight).T, correction=0), torch.eye(6), atol=1e-3, rtol=1e-3)
    part = components(rows, 3, rng)
    values = np.linalg.eigvalsh(np.corrcoef(rows.numpy().T))[::-1][:3]
    np.testing.assert_allclose(part.values_D.numpy(), values, rtol=1e-3)


def test_patches_are_cut_from_the_images():
    pixels = torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8)
    patches = sample_patches(pixels, 6, 20, torch.Generator().manual_seed(0)) * 255
    windows = pixels.float().unfold(2, 6, 1).unfold(3, 6, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 108)
    assert all((windows - patch).abs().max(1).values.min() < 1e-3 for patch in patches)


def test_pooling_reads_every_position():
    for positions in range(3, 30):
        kernel, stride = even_pooling(positions, 3)
        assert 2 * stride + kernel == positions and stride <= kernel


def test_entries_grow_with_the_images():
    assert [entries_for(count) for count in (50, 200, 1551, 10_000, 50_000)] == [32, 32, 256, 256, 512]


def test_network_refuses_sizes_below_its_patches():
    with pytest.raises(RecipeError, match="at least 9"):
        PatchDictionary(size=8)


@pytest.fixture(scope="module", params=[16, 24])
def joined(request, stripes, tmp_path_factory) -> tuple[diptych.Trained, diptych.Trained]:
    """The trained network, and both joined; its images are those of the dictionary or larger."""
    torch.manual_seed(0)
    size, mean, std = request.param, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    network = encoder("small_convolutions", widths=(8, 12, 16)).eval()
    other = diptych.Trained(network, Preprocessing(size, mean, std), built_with(network))
    photos = images(np.kron(stripes[0][:60], np.ones((1, 2, 2, 1), np.uint8)), size=size)
    out = tmp_path_factory.mktemp("joined") / "run"
    return other, quick(photos, size=16, join=other, mirrored=True, keep="codes", out=out, show=False)


def test_joined_is_the_closed_form_beside_whitened_codes_of_the_trained_network(joined, stripes):
    """Written out: the embedding, and the means over quadrants of the last two maps, averaged with the mirror image's."""
    other, both = joined
    size = other.preprocessing.size
    photos = images(np.kron(stripes[0][:60], np.ones((1, 2, 2, 1), np.uint8)), size=size)
    pixels = torch.stack([photos.load(i) for i in range(60)])
    vectors, part = both(pixels), both.encoder.dictionary.num_features
    assert vectors.shape == (60, both.encoder.num_features) and vectors.shape[1] > part
    torch.testing.assert_close(vectors[:, :part].norm(dim=1), torch.ones(60))
    expected, end = [], part
    for layer, described, length in zip(
        both.encoder.whiten, described_slowly(other, pixels), (0.6, 0.3, 0.3), strict=True
    ):
        expected.append(length * F.normalize(described @ layer.weight.T + layer.bias, dim=1))
        code = vectors[:, end : end + layer.out_features]
        torch.testing.assert_close(code.norm(dim=1), torch.full((60,), length))
        end += layer.out_features
    torch.testing.assert_close(vectors[:, part:], torch.cat(expected, 1), atol=1e-4, rtol=1e-3)
    if size == 16:
        small = quick(photos, size=16, mirrored=True, keep="codes", show=False)
        torch.testing.assert_close(vectors[:, :part], F.normalize(small(pixels), dim=1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def described_slowly(trained: diptych.Trained, pixels: torch.Tensor) -> list[torch.Tensor]:
    network, maps = trained.encoder, {}
    for name in ("residual", "last"):
        getattr(network, name).register_forward_hook(
            lambda _, given, out, name=name: maps.update({name: (given[0], out)})
        )
    straight = prepare(pixels, trained.preprocessing.mean, trained.preprocessing.std)
    both = []
    for shown in (straight, straight.flip(3)):
        described = [network(shown)]
        for map_ in (sum(maps["residual"]), maps["last"][1]):
            half, side = map_.shape[2] // 2, -(-map_.shape[2] // 2)  # of an odd map, the middle is in all quadrants
            cells = [map_[:, :, i : i + side, j : j + side].mean((2, 3)) for i in (0, half) for j in (0, half)]
            described.append(torch.stack(cells, 2).flatten(1))
        both.append(described)
    return [(one + other) / 2 for one, other in zip(*both, strict=True)]


def test_joined_is_an_encoder_as_any_other(joined, tmp_path):
    _, both = joined
    again = diptych.load(both.folder)
    pixels = torch.randint(256, (5, 3, 40, 40), dtype=torch.uint8)
    torch.testing.assert_close(again(pixels), both(pixels))
    batch = torch.rand(3, 3, both.preprocessing.size, both.preprocessing.size)
    program = torch.export.export(again.encoder, (batch,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    torch.export.save(program, tmp_path / "joined.pt2")
    opened = torch.export.load(tmp_path / "joined.pt2").module()
    torch.testing.assert_close(opened(batch[:2]), again.encoder(batch[:2]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [("resnet18", {"channels": (4, 4, 8, 8), "stem": "small"}, [8, 32, 32]), ("convnext_atto", {}, [320, 640]),
     ("vit_tiny_patch16_224", {"size": 32, "depth": 2}, [192, 768, 768]), ("keras_resnet20v2", {}, [256])],
)  # fmt: skip
def test_networks_with_maps_are_described_by_them(name, options, parts):
    torch.manual_seed(0)
    network, batch = encoder(name, **options).eval(), torch.rand(2, 3, 32, 32)
    maps = has_maps(network, batch)
    with torch.no_grad():
        described = Described(network, maps=maps, mirrored=False).parts(batch)
        assert [part.shape[1] for part in described] == parts, maps
        torch.testing.assert_close(described[0], network(batch))


def test_a_network_whose_head_does_more_is_described_by_its_embedding():
    network = encoder("resnet18", channels=(4, 4, 8, 8), stem="small").eval()
    assert has_maps(network, torch.rand(2, 3, 32, 32))
    network.forward = lambda images: 2 * network.forward_head(network.forward_features(images))
    assert not has_maps(network, torch.rand(2, 3, 32, 32))


def test_wide_rows_have_the_same_components(monkeypatch):
    rows = torch.randn(600, 300, generator=torch.Generator().manual_seed(0)) * torch.logspace(1, -2, 300)
    exact = partial_whitening(rows, 40, 0.35, 1e-3)
    monkeypatch.setattr(whitenings, "WIDE", 100)
    mean, weight = partial_whitening(rows, 40, 0.35, 1e-3)
    assert weight.shape == (300, 40)
    ours, theirs = ((rows - m) @ w for m, w in ((mean, weight), exact))
    torch.testing.assert_close(
        ours @ ours.T, theirs @ theirs.T, atol=1e-3 * float((theirs @ theirs.T).abs().max()), rtol=0
    )


def test_partial_whitening_divides_variances(stripes):
    rows = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25])
    mean, weight = partial_whitening(rows, 5, 0.35, 1e-3)
    variances = ((rows - mean) @ weight).var(0, correction=0)
    spread = torch.linalg.eigvalsh(rows.T.cov(correction=0)).flip(0)
    torch.testing.assert_close(variances, spread / (spread + 1e-3 * spread.mean()) ** 0.7, rtol=1e-3, atol=0)


def test_joining_refuses_what_it_cannot_describe(stripes, trained):
    own = diptych.Trained(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 4)), Preprocessing(16))
    for other, message in ((own, "cannot be joined"), (trained, "patch_dictionary")):
        with pytest.raises(RecipeError, match=message):
            quick(images(stripes[0]), join=other, show=False)
        assert not joinable(other)
    with pytest.raises(RecipeError, match="quick SOURCE --join"):
        encoder("joined")


def test_the_largest_dictionary_is_within_the_ranges():
    with torch.device("meta"):
        network = dictionary_network(32, MOST_ENTRIES, 24, mirrored=True, keep="codes")
    assert network.second_dictionary.out_channels == 4 * MOST_ENTRIES
