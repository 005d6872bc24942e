"""Methods that keep the contract of `diptych.methods.method` and are unlike those of the package, for tests."""

import copy
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.base.processes import gather, mean_over_ranks, rank
from diptych.methods import Method
from diptych.methods.losses import negative_cosine
from diptych.methods.method import Compared, Draw, Progress, Projections, embedding_width, two_views


def projector_on(encoder: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(embedding_width(encoder, None), width), nn.BatchNorm1d(width), nn.Tanh())


class OwnKeys(Method):
    """Its projections have names of their own, `a` and `b`; `shown` says which two belong together."""

    def __init__(self, encoder: nn.Module, width: int = 8):
        super().__init__()
        self.encoder, self.projector = encoder, projector_on(encoder, width)

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        first, second = two_views(views)
        return {"a": self.projector(self.encoder(first)), "b": self.projector(self.encoder(second))}

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        similarity = negative_cosine(projections["a"], projections["b"])
        return Compared(similarity, {"similarity": -similarity.detach()})

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor]:
        return projections["a"], projections["b"]


class ThreeViews(Method):
    """Three views of each image, two large and a small one, as of multi-crop: the large ones are the small one's targets."""

    views = range(3, 4)

    def __init__(self, encoder: nn.Module, width: int = 8):
        super().__init__()
        self.encoder, self.projector = encoder, projector_on(encoder, width)

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        first, second, small = views
        named = {"first": first, "second": second, "small": small}
        return {name: self.projector(self.encoder(view)) for name, view in named.items()}

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        first, second, small = (projections[name] for name in ("first", "second", "small"))
        large = negative_cosine(first, second)
        of_small = (negative_cosine(small, first.detach()) + negative_cosine(small, second.detach())) / 2
        return Compared((large + of_small) / 2, {"large": large.detach(), "small": of_small.detach()})

    def shown(self, projections: Projections) -> tuple[Tensor, Tensor]:
        return projections["first"], projections["second"]


class QueueAndTarget(Method):
    """A prediction is told from a queue of earlier keys, which a slowly moving copy of the networks makes.

    It uses all of the contract: randomness of its own (noise on the first view), groups of `statistics_rows`, progress in
    the loss and in the target's rate, `kept` keys for `after_step`, a target and a queue that move in place, and no `shown`.
    Its batch size over all processes is at most `queue`.
    """

    def __init__(self, encoder: nn.Module, width: int = 8, queue: int = 20, statistics_rows: int | None = 3):
        super().__init__()
        self.encoder, self.projector = encoder, projector_on(encoder, width)
        self.target = copy.deepcopy(nn.Sequential(self.encoder, self.projector)).requires_grad_(False)
        self.statistics_rows = statistics_rows
        self.register_buffer("queue", F.normalize(torch.randn(queue, width)))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))  # of the oldest key

    def draw(self, n: int, rng: torch.Generator) -> Draw:
        return {"noise": 0.1 * torch.randn(n, 3, 1, 1, generator=rng)}

    def project(self, views: Sequence[Tensor], draw: Draw) -> Projections:
        first, second = two_views(views)
        prediction = self.projector(self.encoder(first + draw["noise"].to(first.dtype)))
        with torch.no_grad():
            key = self.target(second)
        return {"prediction": prediction, "key": key}

    def compare(self, projections: Projections, progress: Progress) -> Compared:
        with torch.autocast(self.queue.device.type, enabled=False):
            prediction, key = (F.normalize(projections[name].to(self.queue.dtype)) for name in ("prediction", "key"))
            key = key.detach()
            scores = torch.cat([(prediction * key).sum(1, keepdim=True), prediction @ self.queue.T], 1)
            own = (scores / (0.5 - 0.3 * progress)).log_softmax(1)[:, 0]
        loss = -mean_over_ranks(own.sum()) / mean_over_ranks(own.new_full((), len(own)))
        similarity = mean_over_ranks(scores[:, 0].detach().mean())
        return Compared(loss, {"similarity": similarity}, kept={"key": key})

    @torch.no_grad()
    def after_step(self, kept: Mapping[str, Tensor], progress: Progress) -> None:
        share = 0.1 * (1 - torch.as_tensor(progress))
        online = [*self.encoder.parameters(), *self.projector.parameters()]
        for target, parameter in zip(self.target.parameters(), online, strict=True):
            target.lerp_(parameter, share.to(target))
        keys = gather(kept["key"])  # the same rows on every rank, in rank order
        rows = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, rows, keys.to(self.queue.dtype))
        self.place.add_(len(keys)).remainder_(len(self.queue))


def rows_of_this_process(everything: Sequence[Tensor], share: int) -> list[Tensor]:
    """This process' rows of tensors of the global batch, `share` of them."""
    return [x[rank() * share : (rank() + 1) * share] for x in everything]
