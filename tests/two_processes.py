"""Three steps in float64, whole and in pieces, started by torchrun with two processes and by the test with one."""

import sys
from pathlib import Path

import torch
from tiny import NormlessEncoder, TinyEncoder, tiny_images, tiny_run, without_norms

from diptych.methods import BarlowTwins, SimSiam
from diptych.runs.run import Run


def train(out: Path, device: str) -> Run:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    encoder = TinyEncoder()
    encoder[3].p = 0.0  # dropout draws by process
    method = SimSiam(encoder, projector=(16, 16), predictor=8)
    return tiny_run(out, method, tiny_images(12 * 3), epochs=1, precision="float64", checkpoint_minutes=5.0,
                    device=device)  # fmt: skip


def train_in_pieces(out: Path, device: str) -> Run:
    """Two images of each process at a time; batch statistics, which see the pieces, are left out."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    method = without_norms(BarlowTwins(NormlessEncoder(), projector=(16, 16)))
    return tiny_run(out, method, tiny_images(12 * 3), epochs=1, precision="float64", micro_batch=2,
                    device=device)  # fmt: skip


def without_questions(exchange):
    """Training promises equal numbers of rows, so no loss asks the other processes for theirs."""

    def checked(gathered, own):
        assert (own.dtype, own.numel()) != (torch.int64, 1), "a process asked for the others' numbers of rows"
        return exchange(gathered, own)

    return checked


if __name__ == "__main__":
    torch.distributed.all_gather_into_tensor = without_questions(torch.distributed.all_gather_into_tensor)
    sys.path.insert(0, str(Path(__file__).parent))
    train(Path(sys.argv[1]), sys.argv[3])
    train_in_pieces(Path(sys.argv[2]), sys.argv[3])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
