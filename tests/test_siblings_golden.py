"""SimCLR, BYOL, MoCo v2, SwAV, VICReg and DINO beside what the published programs gave: losses, gradients, two trainings.

Inputs, tolerances and programs are described beside the golden numbers, which are not shipped with the repository.
"""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from golden import TwoLayers, agree, fill, filled, leaf, parameter_of, siblings
from small import Small
from torch import Tensor, nn

from diptych.methods import BYOL, DINO, MoCo, SimCLR, SwAV, VICReg
from diptych.methods.assignments import sinkhorn
from diptych.methods.contrast import info_nce
from diptych.methods.dino import directions
from diptych.methods.target import falling, push
from diptych.training.schedules import warmup_cosine


def digits(name: str) -> dict[str, float]:
    """{"N": 16, "D": 128, "T": 0.5, "k": 202} of ntxent_N16_D128_T0.5_k202."""
    return {part[0]: float(part[1:]) for part in name.split("_") if part[0] in "NDKTk" and part[1:2].isdigit()}


NT_XENT = [f"ntxent_N{n}_D128_T{t}_k{k}" for n, k in ((4, 200), (16, 202)) for t in (0.5, 0.2, 0.1)]


@pytest.mark.parametrize("name", NT_XENT)
def test_simclr(name):
    golden, has = siblings()["simclr"][name], digits(name)
    shape, k = (int(has["N"]), int(has["D"])), int(has["k"])
    z1 = filled(shape, k, 2.0)
    z1, z2 = leaf(z1), leaf(0.4 * z1 + 0.6 * filled(shape, k + 1, 2.0))
    method = SimCLR(nn.Identity(), nn.Identity(), temperature=has["T"])
    loss = method.compare({"z1": z1, "z2": z2}, 0.0).loss
    loss.backward()
    agree(loss, golden["loss"])
    agree(z1.grad, golden["grad_z1"])
    agree(z2.grad, golden["grad_z2"])
    single = method.compare({"z1": z1.detach().float(), "z2": z2.detach().float()}, 0.0).loss
    agree(single, golden["loss_float32"], 1e-5)


@pytest.mark.parametrize("name", ["regression_N16_D32_k300", "regression_N4_D8_k304"])
def test_byol(name):
    golden, has = siblings()["byol"][name], digits(name)
    p1, z1, p2, z2 = (leaf(filled((int(has["N"]), int(has["D"])), int(has["k"]) + i, 1.5, 0.25)) for i in range(4))
    method = BYOL(nn.Linear(1, 1), nn.Linear(1, 1), nn.Identity())
    loss = method.compare({"p1": p1, "p2": p2, "target1": z1, "target2": z2}, 0.0).loss
    loss.backward()
    agree(loss, golden["loss"])
    agree(p1.grad, golden["grad_p1"])
    agree(p2.grad, golden["grad_p2"])
    assert z1.grad is None and z2.grad is None


def test_byol_momentum_rises_as_published():
    for start, steps in siblings()["byol"]["tau_1000_steps"].items():
        for step, momentum in steps.items():
            agree(1 - falling(1 - float(start), int(step) / 1000), momentum)


def test_dino_momentum_rises_as_published():
    schedules = siblings()["dino"]["schedules_100epochs_of_10steps"]
    for step, momentum in schedules["ema_0.996_to_1"].items():
        agree(1 - falling(1 - 0.996, int(step) / 1000), momentum)


def test_byols_and_dinos_rates_are_the_schedules():
    """BYOL's warm-up ends at its peak one step after DINO's, whose linspace has both ends: there ours is 99 / 100 of it."""
    for step, rate in siblings()["byol"]["learning_rate_base0.3_batch4096_warmup100_total1000"].items():
        agree(
            0.3 * 4096 / 256 * warmup_cosine(warmup=0.1, floor=0.0)(int(step) / 1000), rate, 1e-7
        )  # float32 of theirs
    for step, rate in siblings()["dino"]["schedules_100epochs_of_10steps"]["lr_5e-4_to_1e-6_warmup10"].items():
        ours = 5e-4 * warmup_cosine(warmup=0.1, floor=1e-6 / 5e-4)(int(step) / 1000)
        agree(ours, rate * (0.99 if int(step) < 100 else 1.0))


def check_networks(networks: Mapping[str, nn.Module], golden: Mapping[str, dict]) -> None:
    for name, expected in golden.items():
        agree(parameter_of(networks, name), expected)


def test_byol_training():
    """Five steps; the target starts elsewhere, so that its order of things can be seen."""
    golden = siblings()["byol"]["trajectory_N16_k320"]
    settings = golden["settings"]
    encoder, projector, predictor = TwoLayers(12, 16, 10), TwoLayers(10, 14, 8, False), TwoLayers(8, 14, 8, False)
    method = BYOL(encoder, projector, predictor, momentum=settings["tau0"]).double()
    online = {"encoder": encoder, "projector": projector, "predictor": predictor}
    target = {"encoder": method.target[0], "projector": method.target[1]}
    fill(online, golden["fill_order_online"])
    fill(target, golden["fill_order_target"])
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=settings["lr"])
    for step, expected in enumerate(golden["loss_per_step"]):
        view = filled((16, 12), 360 + 2 * step)
        progress = step / settings["max_steps"]
        compared = method([view, 0.7 * view + 0.3 * filled((16, 12), 361 + 2 * step)], progress=progress)
        agree(compared.loss, expected)
        optimizer.zero_grad()
        compared.loss.backward()
        optimizer.step()
        method.after_step(compared.kept, progress)
        check_networks(online, golden["after_step"][step]["online"])
        check_networks(target, golden["after_step"][step]["target"])
    check_networks(online, golden["online_at_end"] | golden["online_statistics_at_end"])
    check_networks(target, golden["target_at_end"] | golden["target_statistics_at_end"])


INFO_NCE = [f"infonce_N{n}_D{d}_K32_T{t}_k{k}" for n, d, k in ((8, 16, 400), (4, 128, 404)) for t in (0.2, 0.07)]


@pytest.mark.parametrize("name", INFO_NCE)
def test_moco(name):
    golden, has = siblings()["moco"][name], digits(name)
    n, d, k = (int(has[key]) for key in "NDk")
    q = filled((n, d), k, 2.0)
    key, q = 0.4 * q + 0.6 * filled((n, d), k + 1, 2.0), leaf(q)
    queue = F.normalize(filled((d, 32), k + 2), dim=0).T.contiguous()
    loss, _ = info_nce(q, key, queue, has["T"])
    loss.backward()
    agree(loss, golden["loss"])
    agree(q.grad, golden["grad_q"])
    push(queue, torch.tensor(0), F.normalize(key, dim=1))
    agree(queue.T, golden["queue_after"])


def test_moco_queue():
    golden = siblings()["moco"]["queue_5_pushes_N8_D16_K32_k410"]
    queue, pushed = F.normalize(filled((16, 32), 410), dim=0).T.contiguous(), torch.tensor(0)
    for step, expected in enumerate(golden["queue_after_each_push"]):
        assert pushed % 32 == golden["pointer"][step]
        push(queue, pushed, F.normalize(filled((8, 16), 411 + step), dim=1))
        pushed += 8
        agree(queue.T, expected)
    agree(queue.sum(1), golden["column_sums_at_end"])


@pytest.mark.parametrize("apart", [False, True])
def test_moco_training(apart):
    """The published program moves the key network at the start of a step, here it moves at the end of the one before.

    Keys that start apart therefore move once before step 0, as the program's do in step 0.
    """
    golden = siblings()["moco"]["trajectory_keys_apart_N8_D8_K32_k420" if apart else "trajectory_N8_D8_K32_k420"]
    order = siblings()["moco"]["trajectory_N8_D8_K32_k420"]["fill_order"]
    encoder = TwoLayers(12, 16, 10)
    head = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 8))
    fill({"fc": head, "": encoder}, order)
    method = MoCo(encoder, head, queue=32, temperature=0.2, momentum=0.9, statistics_rows=None).double()
    fill({"fc": method.projector, "": method.encoder}, order)  # once more, in float64
    fill({"fc": method.target[1], "": method.target[0]}, golden.get("fill_order_key", order))
    query, key = {"fc": head, "": encoder}, {"fc": method.target[1], "": method.target[0]}
    method.queue.copy_(F.normalize(filled((8, 32), 430), dim=0).T)
    if apart:
        method.after_step({}, 0.0)
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
    for step, expected in enumerate(golden["loss_per_step"]):
        view = filled((8, 12), 440 + 2 * step)
        pair = [view, 0.7 * view + 0.3 * filled((8, 12), 441 + 2 * step)]
        compared = method(pair, draw={"order": torch.zeros(8)})
        agree(compared.loss, expected)
        last = {name: p.detach().clone() for name, p in method.target.named_parameters()}
        optimizer.zero_grad()
        compared.loss.backward()
        optimizer.step()
        method.after_step(compared.kept, 0.0)
        if not apart:
            agree(method.queue.T, golden["after_step"][step]["queue"])
            check_networks(query, golden["after_step"][step]["query"])
    check_networks(query, golden["query_at_end"] | golden.get("query_statistics_at_end", {}))
    with torch.no_grad():
        for name, parameter in method.target.named_parameters():
            parameter.copy_(last[name])  # of the last step's keys: the program has not moved it since
    check_networks(key, golden["key_at_end"] | golden.get("key_statistics_at_end", {}))
    agree(method.queue.T, golden.get("queue_at_end") or golden["after_step"][-1]["queue"])


# ---- SwAV


def swav(queue: int | None = None) -> SwAV:
    method = SwAV(nn.Identity(), nn.Linear(16, 16), prototypes=10, queue=queue, queue_start=0.0, frozen=0.0).double()
    with torch.no_grad():
        method.prototypes.copy_(F.normalize(filled((10, 16), 500), dim=1))
    return method


def crops() -> list[Tensor]:
    z0 = filled((16, 16), 501)
    shares = ((1.0, 0.0), (0.6, 0.4), (0.5, 0.5), (0.5, 0.5))
    return [leaf(a * z0 + b * filled((16, 16), 501 + i)) for i, (a, b) in enumerate(shares)]


@pytest.mark.parametrize("view", [0, 1])
def test_sinkhorn(view):
    golden = siblings()["swav"][f"sinkhorn_N16_K10_view{view}_k501"]
    scores = F.normalize(crops()[view].detach(), dim=1) @ F.normalize(filled((10, 16), 500), dim=1).T
    agree(scores, golden["scores"])
    for iterations, epsilon in ((3, 0.05), (1, 0.05), (3, 0.03)):
        agree(sinkhorn(scores, epsilon, iterations), golden[f"q_iterations{iterations}_epsilon{epsilon}"])


@pytest.mark.parametrize("name", ["loss_2crops_k500", "loss_2plus2crops_k500", "loss_2crops_queue32_k500"])
def test_swav(name):
    golden = siblings()["swav"][name]
    z = crops()[: 4 if "2plus2" in name else 2]
    method = swav(queue=32 if "queue" in name else None)
    if "queue" in name:
        method.queue.copy_(torch.stack([F.normalize(filled((32, 16), k), dim=1) for k in (505, 506)]))
        method.pushed.fill_(32)
        agree(method.assign(F.normalize(z[0].detach(), dim=1), 0, 0.5), golden["q_view0"])
    compared = method.compare({f"z{i}": rows for i, rows in enumerate(z, 1)}, 0.5)
    compared.loss.backward()
    agree(compared.loss, golden["loss"])
    agree(method.prototypes.grad, golden["grad_prototypes"])
    for i, rows in enumerate(z):
        agree(rows.grad, golden[f"grad_z{i}"])
    with torch.no_grad():
        method.prototypes.sub_(method.prototypes.grad, alpha=0.5)
    method.after_step(compared.kept, 0.5)
    if "prototypes_after_step_lr0.5_then_normalised" in golden:
        agree(method.prototypes, golden["prototypes_after_step_lr0.5_then_normalised"])


# ---- VICReg


@pytest.mark.parametrize("name", [f"loss_N{n}_D{d}_k{k}" for n, d, k in
                                  ((8, 16, 600), (8, 64, 602), (32, 16, 604), (32, 64, 606))])  # fmt: skip
def test_vicreg(name):
    golden, has = siblings()["vicreg"][name], digits(name)
    shape, k = (int(has["N"]), int(has["D"])), int(has["k"])
    columns = 0.5 + 2 * torch.arange(shape[1], dtype=torch.float64) / (shape[1] - 1)
    x, y = filled(shape, k), filled(shape, k + 1)
    pair = {"z1": leaf(x * columns), "z2": leaf((0.7 * x + 0.3 * y) * columns)}
    method = VICReg(nn.Identity(), nn.Identity())
    loss, parts, _ = method.compare(pair, 0.0)
    loss.backward()
    agree(loss, golden["loss"])
    agree(pair["z1"].grad, golden["grad_x"])
    agree(pair["z2"].grad, golden["grad_y"])
    for term in ("invariance", "variance", "covariance"):
        agree(parts[term], golden[term])
        alone = {"invariance": 0.0, "variance": 0.0, "covariance": 0.0} | {term: 1.0}
        if f"grad_x_of_{term}" in golden:
            fresh = {name: leaf(z.detach()) for name, z in pair.items()}
            VICReg(nn.Identity(), nn.Identity(), **alone).compare(fresh, 0.0).loss.backward()
            agree(fresh["z1"].grad, golden[f"grad_x_of_{term}"])


# ---- DINO


def test_dino():
    """Three calls: the centre that a call leaves is the next one's."""
    golden = siblings()["dino"]["loss_2plus2views_N8_out32_k700"]
    method = DINO(nn.Identity(), nn.Linear(32, 32), prototypes=32, frozen=0.0, momentum=0.0).double()
    for call, expected in enumerate(golden["calls"]):
        rows = filled((32, 32), 700 + 2 * call)
        teacher = 0.5 * rows[:16] + 0.5 * filled((16, 32), 701 + 2 * call) + 0.2 * filled((1, 32), 706)
        student = leaf(rows)
        loss, _ = method.loss_of(student.split(8), teacher.split(8), torch.tensor(0.0))
        loss.backward()
        agree(loss, expected["loss"])
        agree(student.grad, expected["grad_student"])
        method.move_centre(teacher.mean(0))
        agree(method.centre[None], expected["center_after"])


def test_dino_teacher_temperature():
    golden = siblings()["dino"]["teacher_temperature_0.04_0.07_warmup30_epochs100"]
    method = DINO(Small(), (10, 7), prototypes=9, teacher_temperature=0.07, first_temperature=0.04, warmup=0.29)
    for epoch, temperature in golden.items():
        agree(method.temperature_at(torch.tensor(int(epoch) / 100, dtype=torch.float64)), temperature)


def test_dino_head():
    golden = siblings()["dino"]["head_k740"]
    encoder = nn.Linear(1, 10)
    encoder.num_features = 10
    method = DINO(encoder, (24, 24, 12), prototypes=32).double()
    layers = [layer for layer in method.student[1] if isinstance(layer, nn.Linear)]
    mlp = nn.Module()
    for place, layer in zip((0, 2, 4), layers, strict=True):
        mlp.add_module(str(place), layer)
    fill({"mlp": mlp}, golden["fill_order"][:-1])
    k, _, shape = golden["fill_order"][-1]
    with torch.no_grad():
        method.prototypes.copy_(filled(shape, k, (6 / shape[1]) ** 0.5))
    x = leaf(filled((8, 10), 730))
    output = directions(method.student[1](x)) @ directions(method.prototypes).T
    agree(output, golden["output"])
    (output * filled((8, 32), 731)).sum().backward()
    agree(x.grad, golden["grad_x"])
    agree(method.prototypes.grad, golden["grads"]["last_layer.weight_v"])
    for name, expected in golden["grads"].items():
        if name.startswith("mlp"):
            agree(parameter_of({"mlp": mlp}, name).grad, expected)
