"""Contrastive losses. N: images of a batch, D: width of a projection, K: keys in a queue; T: temperature.

As `diptych.methods.losses`: functions of tensors, means over the rows of all processes, in float32 or float64.
Projections are divided by their lengths, 1e-12 at least (`F.normalize`, as in MoCo's program): a row of zeros has the cosine 0
with all others, and a gradient of up to about 1e12 / (N T), which is finite.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.base.processes import gather_rows, rank, row_counts
from diptych.methods.losses import check_pair, matmul, mean_of_all, wide


def nt_xent(z1_ND: Tensor, z2_ND: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """NT-Xent, SimCLR eq. 1, summed over both directions: mean_n [l(z1_n, z2_n) + l(z2_n, z1_n)].

    l(a_n, b_n) is the cross-entropy of the own partner b_n among all 2N - 1 other projections, by their cosines over T. It is
    the sum of SimCLR's program, twice the mean of its paper. Returns the loss and, detached, the share of the projections
    whose partner is the nearest. Raises ValueError when the shapes differ.
    """
    check_pair(z1_ND, z2_ND)
    counts = row_counts(len(z1_ND))
    own = _own_rows(counts, z1_ND)
    z1_ND, z2_ND = F.normalize(wide(z1_ND), dim=1), F.normalize(wide(z2_ND), dim=1)
    all1_ND, all2_ND = gather_rows(z1_ND, counts), gather_rows(z2_ND, counts)
    total, right = z1_ND.new_zeros(()), z1_ND.new_zeros(())
    for a_ND, partners_ND, same_ND in ((z1_ND, all2_ND, all1_ND), (z2_ND, all1_ND, all2_ND)):
        to_same_NN = matmul(a_ND, same_ND.T).scatter(1, own[:, None], -torch.inf)  # never with itself
        logits_N2N = torch.cat([matmul(a_ND, partners_ND.T), to_same_NN], 1) / temperature
        total = total + F.cross_entropy(logits_N2N, own, reduction="sum")
        right = right + (logits_N2N.argmax(1) == own).sum() / 2
    return mean_of_all(total, len(own)), mean_of_all(right.detach(), len(own))


def info_nce(q_ND: Tensor, key_ND: Tensor, queue_KD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE with a queue, MoCo eq. 1: the cross-entropy of the own key among it and the K keys of the queue.

    queue_KD: rows of length 1. No gradient flows to keys. Returns the loss and the share of queries whose own key is the
    nearest. Raises ValueError when the shapes of queries and keys differ.
    """
    check_pair(q_ND, key_ND)
    q_ND, key_ND = F.normalize(wide(q_ND), dim=1), F.normalize(wide(key_ND.detach()), dim=1)
    own_N1 = (q_ND * key_ND).sum(1, keepdim=True)
    logits_N1K = torch.cat([own_N1, matmul(q_ND, queue_KD.T)], 1) / temperature
    own = torch.zeros(len(q_ND), dtype=torch.int64, device=q_ND.device)
    return _cross_entropy(logits_N1K, own)


def info_nce_of_batch(q_ND: Tensor, key_ND: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE among the batch's keys, MoCo v3 (arXiv:2104.02057, alg. 1): 2 T times the cross-entropy of the own key.

    No gradient flows to keys. Returns the loss and the share of queries whose own key is the nearest. Raises ValueError
    when the shapes differ.
    """
    check_pair(q_ND, key_ND)
    counts = row_counts(len(q_ND))
    q_ND, key_ND = F.normalize(wide(q_ND), dim=1), F.normalize(wide(key_ND.detach()), dim=1)
    logits_NN = matmul(q_ND, gather_rows(key_ND, counts).T) / temperature
    loss, right = _cross_entropy(logits_NN, _own_rows(counts, q_ND))
    return 2 * temperature * loss, right


def _cross_entropy(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over all rows, and the share of rows whose highest logit is their own."""
    right = (logits.detach().argmax(1) == own).sum().to(logits.dtype)
    return mean_of_all(F.cross_entropy(logits, own, reduction="sum"), len(own)), mean_of_all(right, len(own))


def _own_rows(counts: list[int], like: Tensor) -> Tensor:
    """The places of this process' rows among those of all processes."""
    start = sum(counts[: rank()])
    return torch.arange(start, start + counts[rank()], device=like.device)
