"""Evaluation computes where it was asked to: on a pretended GPU (tests/pretend_gpu.py), to the numbers of the CPU."""

import pytest
import torch
from pretend_gpu import GPU, OnGpu, PretendGpu
from test_evaluate import clusters
from tiny import TinyEncoder, tiny_images, tiny_run

from diptych import Preprocessing, Trained, evaluate, load
from diptych.downstream import classify as classify_file
from diptych.downstream import evaluate as evaluate_file
from diptych.downstream import overview
from diptych.downstream.classifier import fit, linear_head
from diptych.downstream.classify import classify, label
from diptych.downstream.finetune import from_scratch
from diptych.embeddings.diagnose import diagnose
from diptych.embeddings.nearest import nearest
from diptych.embeddings.scores import knn_accuracy, linear_probe
from diptych.networks.encoders import built_with, encoder
from diptych.networks.inference import embeddings, raw_pixels
from diptych.training.schedules import constant


@pytest.fixture
def gpu():
    with PretendGpu() as pretended:
        yield pretended


@pytest.fixture
def asked_for_a_gpu(monkeypatch):
    """`device="cuda"` means the pretended one, and modules may be moved there."""
    monkeypatch.setattr("diptych.data.resident.free_bytes", lambda where: 2**40)
    for file in (evaluate_file, classify_file):
        monkeypatch.setattr(file, "choose_device", lambda name: GPU)
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


def labels_alone(gpu: PretendGpu) -> bool:
    """Whether nothing but classes, rows and answers came back from the GPU: no embedding, whole or in part."""
    return all(tensor.ndim < 2 for tensor in gpu.fetched)


def test_the_pretended_gpu_can_fail(gpu):
    here = torch.ones(3, 2)
    there = here.to(GPU)
    assert isinstance(there, OnGpu) and there.device == GPU and float(there.sum()) == 6
    with pytest.raises(RuntimeError, match="mixes"):
        there + here
    with pytest.raises(RuntimeError, match="mixes"):
        there @ torch.ones(2, 2)
    assert labels_alone(gpu)
    assert torch.equal((there * 2).cpu(), here * 2) and not labels_alone(gpu)


@pytest.mark.parametrize("accuracy", [knn_accuracy, linear_probe])
def test_a_score_is_computed_where_the_embeddings_lie(accuracy, gpu):
    (z, y), (queries, truth) = clusters(400, noise=3.0), clusters(100, noise=3.0, seed=1)
    there = accuracy(z.to(GPU), y.tolist(), queries.to(GPU), truth.tolist())
    assert labels_alone(gpu)
    assert there == accuracy(z, y, queries, truth)


def test_what_works_on_embeddings_stays_where_they_lie(gpu):
    (z, y), (queries, _) = clusters(200), clusters(50, seed=1)
    similarity, index = nearest(queries.to(GPU), z.to(GPU), 5)
    assert similarity.device == index.device == GPU and gpu.fetched == []
    assert diagnose(queries.to(GPU), untrained=z[:50].to(GPU)) == diagnose(queries, untrained=z[:50])
    names = [f"class {number}" for number in y]
    assert label(z.to(GPU), names, queries.to(GPU)) == label(z, names, queries)
    assert labels_alone(gpu)


def test_embeddings_are_returned_where_asked_for(gpu):
    pixels = torch.randint(256, (5, 3, 12, 12), dtype=torch.uint8)
    encoder, expected = TinyEncoder(), Preprocessing(12)
    assert embeddings(encoder, pixels, expected).device.type == "cpu"
    assert embeddings(encoder, pixels, expected, output_device=GPU).device == GPU
    assert Trained(encoder, expected)(pixels, output_device=GPU).device == GPU
    assert raw_pixels(pixels, (0, 0, 0), (1, 1, 1)).device.type == "cpu"
    assert raw_pixels(pixels, (0, 0, 0), (1, 1, 1), output_device=GPU).device == GPU
    assert gpu.fetched == []


def test_a_whole_evaluation_leaves_the_embeddings_on_the_gpu(tmp_path, asked_for_a_gpu, gpu, monkeypatch):
    monkeypatch.setattr(overview, "MAPPED", 12)
    run, photos = tiny_run(tmp_path / "run", epochs=1), tiny_images()
    there = evaluate(load(run, TinyEncoder()), photos, photos, show=False)
    fetched = [tuple(tensor.shape) for tensor in gpu.fetched if tensor.ndim > 1]
    assert fetched and all(rows <= 12 for rows, _ in fetched), f"only what is mapped comes to the CPU: {fetched}"
    assert [score.subject for score in there.scores] == ["chance", "raw pixels", "untrained", "trained"] * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_file, "choose_device", lambda name: torch.device("cpu"))
        here = evaluate(load(run, TinyEncoder()), photos, photos, show=False)
    assert [score.accuracy for score in there.scores] == [score.accuracy for score in here.scores]
    assert there.diagnosis.readings == pytest.approx(here.diagnosis.readings, rel=1e-4)


def test_classifying_leaves_the_embeddings_on_the_gpu(asked_for_a_gpu, gpu):
    torch.manual_seed(0)
    trained, photos = Trained(TinyEncoder(), Preprocessing(12)), tiny_images()
    classified = classify(trained, photos, photos, show=False)
    assert trained.encoder[0].weight.device == GPU and labels_alone(gpu)
    assert len(classified.rows) == 48 and classified.held_out is not None


def test_a_new_layer_starts_no_gpu(monkeypatch):
    """Asking each GPU for its random state would start it: one context of some hundred MB a GPU."""

    def start(*_):
        raise AssertionError("a GPU was started")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", start)
    network, small = torch.nn.Linear(2, 2), encoder("small_convolutions", widths=(8, 8, 8))
    optimizer, batch = torch.optim.SGD(network.parameters(), 0.1), (torch.ones(3, 2), torch.tensor([0, 1, 1]))
    before = torch.get_rng_state()
    assert torch.equal(linear_head(4, 3, 0).weight, linear_head(4, 3, 0).weight)
    fit(network, optimizer, lambda epoch: iter([batch]), 1, 1, constant(), 0)
    scratch = from_scratch(Trained(small, Preprocessing(12), built_with(small)), 0)
    assert scratch is not small and torch.equal(torch.get_rng_state(), before)
