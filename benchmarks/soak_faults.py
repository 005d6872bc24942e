"""The run that benchmarks/soak.py mistreats, and every way in which it is mistreated."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import diptych
from benchmarks.soak_tampering import (
    damage_log,
    edit_image,
    overwrite_with_photographs,
    pipe_for_file,
    take_checkpoints,
)
from diptych.runs import checkpoints

DISK, CUT = (
    "24m",
    50_000,
)  # the run's small disk; bytes a file may have where no disk can be made (the weights have 80,000)
PATIENCE = 300  # seconds without what should happen; a start takes 5 on a free core


class Broken(Exception):
    """A promise that was not kept."""


def insist(kept: bool, message: str) -> None:
    if not kept:
        raise Broken(message)


class Soak:
    """The run that faults are done to: its folder, its images, and its process while there is one."""

    def __init__(self, work: Path, epochs: int, processes: int = 1):
        self.work, self.epochs, self.processes = work, epochs, processes
        self.photos, self.disk = work / "photos", work / "disk"
        self.run = self.disk / "run"
        self.disk.mkdir()
        self.own_disk = os.geteuid() == 0 and shutil.which("mount") is not None and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "diptych-soak", self.disk], stderr=subprocess.DEVNULL
        ).returncode  # fmt: skip
        self.process: subprocess.Popen | None = None
        self.starts, self.stood = 0, 0

    def close(self) -> None:
        if self.process is not None:
            ranks = self.ranks()
            self.process.kill()
            self.process.wait()
            for pid in filter(is_alive, ranks):
                os.kill(pid, signal.SIGKILL)
            self.wait_for(lambda: not any(map(is_alive, ranks)), "end of what the launcher has started")
        if self.own_disk:
            subprocess.run(["umount", self.disk], check=True)

    def launch(self, out: Path, minutes: float, flag: str = "--resume") -> subprocess.Popen:
        """A process that trains into `out`, a checkpoint every `minutes`; what it says goes to `said`."""
        self.starts += 1
        source = Path(diptych.__file__).parents[1]
        many = ["--gpus", str(self.processes)] if self.processes > 1 else []
        paths = [str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
        with open(self.said(), "wb") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "diptych", "pretrain", self.photos, "--recipe", self.work / "soak.yaml", "--out", out,
                 flag, *many, f"pretrain.epochs={self.epochs}", f"pretrain.checkpoint_minutes={minutes}"],
                stdout=said, stderr=said, start_new_session=True,  # a Ctrl-C here is not for them
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)})  # fmt: skip

    def said(self) -> Path:
        return self.work / f"start_{self.starts:03d}.txt"

    def start(self, luck: random.Random) -> None:
        """Continue the run, with a checkpoint after every step or fewer."""
        self.stood = logged(self.run)
        self.process = self.launch(self.run, luck.choice((0.0, 0.003)))

    def reach(self, step: int) -> None:
        """Wait until the log has this step, is past where this process began, and two checkpoints are whole."""
        self.wait(lambda: logged(self.run) >= max(step, self.stood + 2) and len(whole(self.run)) >= 2, f"step {step}")

    def wait(self, happened: Callable[[], bool], what: str) -> None:
        """Wait for something that happens while the process runs."""

        def check() -> bool:
            assert self.process is not None
            code = self.process.poll()
            insist(code is None or happened(), f"the run ended with {code} before {what}: {tail(self.said())}")
            return happened()

        self.wait_for(check, what)

    def wait_for(self, happened: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not happened():
            insist(time.monotonic() < end, f"no {what} in {PATIENCE} seconds: {tail(self.said())}")
            time.sleep(0.004)

    def ranks(self) -> list[int]:
        """The processes that train, the first one first: the launcher's children, or the process itself."""
        assert self.process is not None
        if self.processes == 1:
            return [self.process.pid]
        return children(self.process.pid)

    def ended(self, ranks: Sequence[int] = ()) -> int:
        """The exit code of the process, once it has ended, and all that it started too.

        ranks: what it has started, where it may not live long enough to be asked.
        """
        assert self.process is not None
        ranks = ranks or self.ranks()
        code = self.process.wait(PATIENCE)
        self.process = None
        self.wait_for(lambda: not any(map(is_alive, ranks)), "end of what the launcher has started")
        insist("Traceback" not in self.said().read_text(), f"a traceback: {tail(self.said())}")
        if code == 75:
            insist(
                int(whole(self.run)[-1].name[5:]) == logged(self.run), "it stopped (75), but its last step is not saved"
            )
        return code

    def take_room(self) -> None:
        """Until it ends, a full disk; or where none of our own can be made, no file of more than CUT bytes."""
        assert self.process is not None
        if not self.own_disk:
            resource.prlimit(self.ranks()[0], resource.RLIMIT_FSIZE, (CUT, CUT))
            return
        filler, end = self.disk / "filler", time.monotonic() + PATIENCE
        with open(filler, "wb", buffering=0) as file:
            while self.process.poll() is None and time.monotonic() < end:
                try:
                    file.write(bytes(65536))
                except OSError:  # full; but the run may still remove something
                    time.sleep(0.01)
        filler.unlink()


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def is_alive(pid: int) -> bool:
    """Whether a process is there that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def logged(run: Path) -> int:
    """The last step in the log, 0 where there is none."""
    try:
        lines = (run / "log.jsonl").read_bytes()[-6000:].splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        if line.startswith(b'{"event": "step"') and line.endswith(b"}"):
            return json.loads(line)["step"]
    return 0


def whole(run: Path) -> list[Path]:
    """The checkpoints whose every hash agrees, oldest first."""
    return [path for path in checkpoints.steps(run / "checkpoints") if checkpoints.fault(path) is None]


def tail(path: Path) -> str:
    return " | ".join(path.read_text().splitlines()[-3:])


# What is done. Each is called with the run and a generator of its own, and returns the exit code, None where the run goes on.


def signals(*numbers: int) -> Callable:
    def act(soak: Soak, luck: random.Random) -> int:
        ranks = soak.ranks()
        for number in numbers:
            soak.process.send_signal(number)
            time.sleep(luck.uniform(0.005, 0.02))  # two at once would be one; a step takes about 0.03
        return soak.ended(ranks)

    return act


def starve(soak: Soak, luck: random.Random) -> int:
    soak.take_room()
    return soak.ended()


def freeze(soak: Soak, luck: random.Random) -> None:
    pid = luck.choice(soak.ranks())
    os.kill(pid, signal.SIGSTOP)
    time.sleep(luck.uniform(0.05, 0.5))
    os.kill(pid, signal.SIGCONT)
    soak.reach(logged(soak.run) + 2)


def double(soak: Soak, luck: random.Random) -> int:
    """The first holds still meanwhile, lest it be done before the second is there."""
    writer = soak.ranks()[0]
    os.kill(writer, signal.SIGSTOP)
    first = soak.said()
    code = soak.launch(soak.run, 0.0).wait(PATIENCE)
    insist(f"process {writer} " in tail(soak.said()), f"the second run says {tail(soak.said())}")
    os.kill(writer, signal.SIGCONT)
    soak.said().replace(soak.said().with_suffix(".second"))
    first.replace(soak.said())
    soak.reach(logged(soak.run) + 2)
    return code


def kill_at_start(soak: Soak, luck: random.Random) -> int:
    """As soon as it holds the lock, or a little later: it then reads the checkpoint and rewinds the log."""
    soak.start(luck)
    soak.wait(lambda: any(f"process {pid} " in (soak.run / ".lock").read_text() for pid in soak.ranks()), "lock")
    time.sleep(luck.choice((0.0, 0.01, 0.05, 0.2)))
    ranks = soak.ranks()
    soak.process.kill()
    return soak.ended(ranks)


def kill_one(soak: Soak, luck: random.Random) -> int:
    """One of several processes goes, as where memory runs out; the others must not wait for it."""
    ranks = soak.ranks()
    os.kill(luck.choice(ranks), signal.SIGKILL)
    return soak.ended(ranks)


def interrupt_with_one_stopped(soak: Soak, luck: random.Random) -> int:
    """Two Ctrl-C end all at once, though one process does not run: within 2 s on a machine that is not busy (test_signals)."""
    ranks = soak.ranks()
    os.kill(luck.choice(ranks), signal.SIGSTOP)
    soak.process.send_signal(signal.SIGINT)
    time.sleep(luck.uniform(0.3, 0.6))
    began = time.monotonic()
    soak.process.send_signal(signal.SIGINT)
    code = soak.ended(ranks)
    insist(time.monotonic() - began < 10, f"a second Ctrl-C took {time.monotonic() - began:.1f} seconds")
    return code


def kill_launcher_with_one_stopped(soak: Soak, luck: random.Random) -> int:
    """No process is left over."""
    ranks = soak.ranks()
    os.kill(luck.choice(ranks), signal.SIGSTOP)
    soak.process.kill()
    return soak.ended(ranks)


def damage(how: Callable[[bytearray, random.Random], bytes]) -> Callable:
    def act(soak: Soak, luck: random.Random) -> None:
        files = sorted(
            path for path in whole(soak.run)[-1].iterdir() if how is not flip or path.suffix == ".safetensors"
        )
        file = luck.choice(files)
        file.write_bytes(how(bytearray(file.read_bytes()), luck))
        soak.start(luck)
        soak.reach(0)
        insist(
            "looking for an older checkpoint" in soak.said().read_text(), f"{file} is damaged, and nobody has said so"
        )

    return act


def cut(data: bytearray, luck: random.Random) -> bytes:
    return data[: luck.randrange(len(data))]


def flip(data: bytearray, luck: random.Random) -> bytes:
    data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
    return data


def zero(data: bytearray, luck: random.Random) -> bytes:
    return bytes(len(data))


def damage_all(soak: Soak, luck: random.Random) -> int:
    """Nothing is whole: refused, never begun again silently. Then the checkpoints come back."""
    folder, kept = soak.run / "checkpoints", soak.work / "kept"
    shutil.copytree(folder, kept)
    for path in checkpoints.steps(folder):
        file = path / "model.safetensors"
        file.write_bytes(flip(bytearray(file.read_bytes()), luck))
    soak.start(luck)
    code = soak.ended()
    shutil.rmtree(folder)
    shutil.move(kept, folder)
    return code


def leave_temporary(soak: Soak, luck: random.Random) -> None:
    stray = soak.run / "checkpoints" / f".step_{logged(soak.run):07d}.tmp-{luck.randrange(2, 4_000_000)}"
    stray.mkdir()
    (stray / ".model.safetensors.tmp-1").write_bytes(luck.randbytes(1000))
    soak.start(luck)
    soak.reach(0)
    insist(not stray.exists(), f"{stray} was not swept away")


def damage_last(soak: Soak, luck: random.Random) -> None:
    last = soak.run / "checkpoints" / "last"
    last.write_bytes(luck.choice((b"", b"step_9999999", b"../../elsewhere", luck.randbytes(12))))
    soak.start(luck)
    soak.reach(0)
    insist((last.parent / last.read_text()).is_dir(), f"{last} still leads nowhere")


def cut_log(soak: Soak, luck: random.Random) -> None:
    """A power cut in the middle of writing a line. Lines of steps that a checkpoint knows of are on the disk by then."""
    log = soak.run / "log.jsonl"
    line = log.read_text().splitlines()[-1].encode()
    with open(log, "ab") as file:
        file.write(line[: luck.randrange(1, len(line))])
    soak.start(luck)
    soak.reach(0)


def add_image(soak: Soak, luck: random.Random) -> int:
    """A bad file more: other images than the run was made from, so it is refused. Then the file goes."""
    late = soak.photos / "a" / "late.jpg"
    late.write_bytes(luck.choice((b"", b"<html>404</html>", luck.randbytes(300))))
    soak.start(luck)
    code = soak.ended()
    late.unlink()
    return code


@dataclass(frozen=True)
class Kind:
    """What a fault does and how it must end: one of the exit codes `promised`, or, with none, the run goes on."""

    act: Callable
    promised: tuple[int, ...] = ()


GROUPS: dict[str, dict[str, Kind]] = {
    "stop": {  # ends the process, which has been training
        "SIGKILL": Kind(signals(signal.SIGKILL), (-9,)),
        "SIGTERM": Kind(signals(signal.SIGTERM), (75,)),
        "SIGINT": Kind(signals(signal.SIGINT), (75,)),
        "SIGINT twice": Kind(signals(signal.SIGINT, signal.SIGINT), (130, 75)),  # 75: done before the second came
        "SIGUSR1": Kind(signals(signal.SIGUSR1), (75,)),
        "SIGHUP": Kind(signals(signal.SIGHUP), (75,)),
        "no room on the disk": Kind(starve, (6,)),
    },
    "rest": {  # done between two processes
        "checkpoint file cut": Kind(damage(cut)),
        "checkpoint file, a bit flipped": Kind(damage(flip)),
        "checkpoint file zeroed": Kind(damage(zero)),
        "every checkpoint damaged": Kind(damage_all, (4,)),
        "temporary folder left over": Kind(leave_temporary),
        "`last` damaged": Kind(damage_last),
        "log's last line cut": Kind(cut_log),
        "another bad image in the folder": Kind(add_image, (4,)),
        "SIGKILL while starting": Kind(kill_at_start, (-9,)),
        "an image edited, of the same size": Kind(edit_image, (4,)),
        "a line of the log damaged": Kind(damage_log, (4,)),
        "checkpoints taken away": Kind(take_checkpoints, (4,)),
        "a pipe in place of a file": Kind(pipe_for_file, (4,)),
        "--overwrite where photographs are": Kind(overwrite_with_photographs, (6,)),
    },
    "pass": {  # done to the process, which goes on
        "SIGSTOP, SIGCONT": Kind(freeze),
        "second run into the folder": Kind(double, (6,)),
    },
}
SEVERAL = {  # ends several processes that train together
    "SIGKILL of one process": Kind(kill_one, (1,)),
    "Ctrl-C twice, one process stopped": Kind(interrupt_with_one_stopped, (130,)),
    "SIGKILL of the launcher, one stopped": Kind(kill_launcher_with_one_stopped, (-9,)),
}


def groups_for(processes: int) -> dict[str, dict[str, Kind]]:
    """The faults of a run in so many processes, by group."""
    return GROUPS if processes == 1 else GROUPS | {"stop": GROUPS["stop"] | SEVERAL}


KINDS = {name: kind for group in groups_for(2).values() for name, kind in group.items()}
