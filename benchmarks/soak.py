"""One tiny run, stopped, starved, damaged and doubled at moments drawn from a seed, must end as the quiet one, bit for bit.

    python -m benchmarks.soak [--seed S] [--faults 50] [--minutes 15] [--processes 2] [--quick]

The seed is that of the day, the number YYYYMMDD, unless one is given. Both runs are real processes, `python -m diptych
pretrain ... --resume`, on one thread of the CPU each; with `--processes 2` the launcher's (`--gpus 2`), and faults strike
it or one of its processes. Their images hold bad ones from the start. A fault is done when the log has reached its step,
so that the seed makes the same plan again. Every end must be the promised one, and weights, the optimizer's memory and
what every step logged must equal the quiet run's. Exit code 0, or 1 with the line that says what broke; the folders are
then kept.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.soak_faults import DISK, KINDS, PATIENCE, Broken, Soak, groups_for, insist, logged, tail, whole

BATCH, GOOD = 12, 60  # images a step and images that can be read: 5 steps an epoch
GAP = 4, 12  # steps between two faults
CALM = 40  # steps after the last fault
PATTERN = ("stop", "rest", "pass", "stop", "rest", "stop", "rest")  # groups, in turns
RECIPE = """\
images: {size: 16, labels: none}
encoder: {name: resnet18, stem: small, channels: [8, 8, 8, 8]}
method: {name: barlow_twins, projector: [16, 16]}
views:
  - times: 2
    do:
      - random_resized_crop: {size: 16}
      - horizontal_flip: {p: 0.5}
      - color_jitter: {brightness: 0.4, contrast: 0.4, saturation: 0.2, hue: 0.1, p: 0.8}
      - normalize: {mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
optimizer: {name: adamw, lr: 0.002}
schedule: {name: warmup_cosine, warmup: 0.05}
pretrain: {epochs: 1, batch_size: 12, device: cpu, log_steps: 1, watch_epochs: 1000000}
"""


@dataclass(frozen=True)
class Fault:
    """One fault of a plan. `luck` seeds its own draws: which file, which byte."""

    group: str
    name: str
    step: int
    luck: int


def plan(seed: int, faults: int, processes: int = 1) -> list[Fault]:
    """The faults in order; each kind of a group comes once before one comes again."""
    rng, step, made = random.Random(seed), 0, []
    groups = groups_for(processes)
    decks: dict[str, list[str]] = {group: [] for group in groups}
    for number in range(faults):
        group = PATTERN[number % len(PATTERN)]
        deck = decks[group] = decks[group] or rng.sample(sorted(groups[group]), len(groups[group]))
        step += rng.randint(*GAP)
        made.append(Fault(group, deck.pop(), step, rng.getrandbits(32)))
    return made


def make_images(photos: Path) -> None:
    """GOOD small images in two folders, PNG and JPEG, and three that cannot be read."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (photos / name).mkdir(parents=True)
    for i in range(GOOD):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / "ab"[i % 2] / f"{i:02d}.{'png' if i % 3 else 'jpg'}")
    (photos / "a" / "cut.png").write_bytes((photos / "b" / "01.png").read_bytes()[:300])
    (photos / "a" / "empty.jpg").write_bytes(b"")
    (photos / "b" / "text.jpg").write_text("no image")


def history(run: Path) -> list[dict]:
    """What the log says of every step and epoch, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    clock = ("elapsed_seconds", "images_per_second")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines if line["event"] in ("step", "epoch")]


def differences(quiet: Path, noisy: Path) -> list[str]:
    """In what two finished runs differ; [] when weights, optimizer and history are the same to the last bit."""
    last = whole(quiet)[-1].name
    files = [f"checkpoints/{last}/model.safetensors", f"checkpoints/{last}/optimizer.safetensors",
             "encoder/model.safetensors", "untrained/model.safetensors"]  # fmt: skip
    found = [
        name
        for name in files
        if not (noisy / name).exists() or (quiet / name).read_bytes() != (noisy / name).read_bytes()
    ]
    ours, theirs = history(quiet), history(noisy)
    if ours != theirs:
        place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        told = f"{len(ours)} and {len(theirs)} lines" if place is None else f"{ours[place]} and {theirs[place]}"
        found.append(f"log.jsonl ({told})")
    return found


def soak(work: Path, faults: list[Fault], end: float, processes: int = 1) -> list[tuple[str, str]]:
    """The quiet run, the other one with its faults. Returns (name, exit code) of each fault. Raises Broken."""
    make_images(work / "photos")
    (work / "soak.yaml").write_text(RECIPE)
    run = Soak(work, epochs=-(-(faults[-1].step + CALM) * BATCH // GOOD), processes=processes)
    done: list[tuple[str, str]] = []
    try:
        began = time.monotonic()
        quiet = run.launch(work / "quiet", 1.0)
        code = quiet.wait(PATIENCE + run.epochs * GOOD / BATCH)  # a second a step, on a machine that may be busy
        insist(code == 0, f"the quiet run failed: {tail(run.said())}")
        seconds = time.monotonic() - began
        print(f"quiet run: {logged(work / 'quiet')} steps in {seconds:.0f} s; "
              f"{'a disk of ' + DISK if run.own_disk else 'a limit on file sizes'} to starve the other", flush=True)  # fmt: skip
        for number, fault in enumerate(faults, 1):
            if time.monotonic() + seconds > end:
                break
            done.append((fault.name, do(run, number, fault)))
        if run.process is None:
            run.start(random.Random(0))
        code = run.ended()
        insist(code == 0, f"the last start ended with {code}: {tail(run.said())}")
        different = differences(work / "quiet", run.run)
        insist(not different, "the end differs from the quiet run's: " + "; ".join(different))
    finally:
        print(summary(done), flush=True)
        run.close()
    insist(bool(done), "the time was up before the first fault")
    return done


def do(run: Soak, number: int, fault: Fault) -> str:
    """Do one fault at its step, print its line, and return how it ended."""
    kind, luck = KINDS[fault.name], random.Random(fault.luck)
    if fault.group != "rest":
        if run.process is None:
            run.start(luck)
        run.reach(fault.step)
    at = logged(run.run)
    code = kind.act(run, luck)
    got = "goes on" if code is None else f"exit {code}"
    promised = " or ".join(f"exit {code}" for code in kind.promised) or "goes on"
    print(f"{number:3}  step {at:4}  {fault.name:<32} {got:<9} promised: {promised}", flush=True)
    insist(
        code in (kind.promised or (None,)),
        f"{fault.name} at step {at}: {got}, promised was {promised}: {tail(run.said())}",
    )
    insist(bool(whole(run.run)), f"{fault.name} at step {at} has left no whole checkpoint")
    return got


def summary(done: list[tuple[str, str]]) -> str:
    """A line for each kind of fault: how often, and how it ended."""
    lines = [f"{'survived':<34}{'times':>5}  ended"]
    for name in KINDS:
        ends = [end for other, end in done if other == name]
        if ends:
            told = ", ".join(f"{end} ({ends.count(end)})" for end in sorted(set(ends)))
            lines.append(f"{name:<34}{len(ends):>5}  {told}")
    return "\n".join([*lines, f"{'in all':<34}{len(done):>5}"])


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seed", type=int, default=int(f"{date.today():%Y%m%d}"), help="of the plan: which faults, when"
    )
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=15.0, help="then no further faults are begun")
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--quick", action="store_true", help="three faults")
    asked = parser.parse_args(words)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup and in the background of a shell, the runs would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)  # that both are ignored
    began, work = time.monotonic(), Path(tempfile.mkdtemp(prefix="diptych-soak-"))
    faults = plan(asked.seed, 3 if asked.quick else asked.faults, asked.processes)
    try:
        done = soak(work, faults, began + 60 * asked.minutes, asked.processes)
    except Broken as broken:
        print(f"BROKEN, seed {asked.seed}: {broken}\nthe folders are kept in {work}")
        return 1
    shutil.rmtree(work)
    of = "" if len(done) == len(faults) else f" of {len(faults)}, then the time was up,"
    print(f"seed {asked.seed}, processes: {asked.processes}: {len(done)} faults{of} in "
          f"{(time.monotonic() - began) / 60:.1f} minutes; "
          "weights, optimizer and the log of every step equal the quiet run's")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
