"""Three steps in float64, started by torchrun with two processes and by the test with one."""

import sys
from pathlib import Path

import torch
from tiny import TinyEncoder, tiny_images, tiny_run

from diptych.methods import SimSiam
from diptych.run import Run


def train(out: Path) -> Run:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    encoder = TinyEncoder()
    encoder[3].p = 0.0  # dropout draws by process
    method = SimSiam(encoder, projector=(16, 16), predictor=8)
    return tiny_run(out, method, tiny_images(12 * 3), epochs=1, precision="float64", checkpoint_minutes=5.0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    train(Path(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
