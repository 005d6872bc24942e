"""Rows 31 and 38 of docs/faults.md under several processes, and `--gpus N`: they begin and end together, with one exit code."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from spoiled import SMALL, diptych, photographs, refusal
from tiny import tiny_run

from diptych.base import heartbeat
from diptych.base.errors import CheckpointError, DiptychError, RecipeError
from diptych.commands import launch, pretraining
from diptych.runs import checkpoints
from diptych.runs.run import Run

HERE = Path(__file__).parent
SRC = str(Path(launch.__file__).parents[2])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# ---- the launcher, with processes that do one thing each


def stub(monkeypatch, tmp_path, program: str) -> list[int]:
    """Let the launcher start `program`, which knows `rank` and writes its pid down; returns where the pids will stand."""
    before = (
        f"import os, pathlib, signal, sys, time\nrank = int(os.environ['RANK'])\nat = pathlib.Path({str(tmp_path)!r})\n"
    )
    before += "(at / f'pid_{rank}').write_text(str(os.getpid()))\n"
    monkeypatch.setattr(launch, "COMMAND", (sys.executable, "-c", before + program))
    monkeypatch.setattr(sys, "argv", ["diptych"])
    monkeypatch.delenv("RANK", raising=False)


def nobody_left(tmp_path) -> bool:
    pids = [int(path.read_text()) for path in tmp_path.glob("pid_*")]
    return bool(pids) and not any(alive(pid) for pid in pids)


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ((0, 0), 0),
        ((75, 75), 75),
        ((5, 5), 5),
        ((1, 3), 3),  # the first has only lost the second
        ((6, 1), 6),
        ((1, 0), 1),
        ((75, 1), 1),
        ((130, 75), 130),
    ],
)
def test_the_exit_code_is_the_one_that_says_most(codes, code, monkeypatch, tmp_path):
    stub(monkeypatch, tmp_path, f"sys.exit({codes}[rank])")
    assert launch.launch(2, "cpu") == code
    assert nobody_left(tmp_path)


def test_each_process_knows_its_place(monkeypatch, tmp_path):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    stub(monkeypatch, tmp_path, f"(at / f'env_{{rank}}').write_text(repr([os.environ[name] for name in {names}]))")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    assert launch.launch(2, "cpu") == 0
    first, second = ((tmp_path / f"env_{rank}").read_text() for rank in (0, 1))
    assert first.startswith("['0', '2', '0', '127.0.0.1', '") and first.endswith(", '3']")
    assert second == first.replace("['0', '2', '0'", "['1', '2', '1'")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert launch.launch(2, "cpu") == 0
    assert (tmp_path / "env_0").read_text().endswith(", '5']")


def test_the_cause_is_quoted_when_it_is_not_the_first(monkeypatch, tmp_path, capfd):
    stub(monkeypatch, tmp_path, "print(f'diptych: said by {rank}', file=sys.stderr); sys.exit([1, 3][rank])")
    assert launch.launch(2, "cpu") == 3
    assert capfd.readouterr().err == "diptych: said by 0\nprocess 1 of 2:\ndiptych: said by 1\n"
    stub(monkeypatch, tmp_path, "print('diptych: no images', file=sys.stderr); sys.exit(3)")
    assert launch.launch(2, "cpu") == 3
    assert capfd.readouterr().err == "diptych: no images\n"


def test_a_crash_names_the_process_and_the_signal(monkeypatch, tmp_path):
    stub(monkeypatch, tmp_path, "os.kill(os.getpid(), signal.SIGSEGV) if rank else sys.exit(1)")
    with pytest.raises(DiptychError, match="process 1 of 2 was killed by SIGSEGV; .* --resume") as error:
        launch.launch(2, "cpu")
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [("ABRT", "KILL", 1), ("KILL", "ABRT", 0), ("ABRT", "ABRT", 0), ("SEGV", "KILL", 0)],
)
def test_the_crash_that_caused_another_is_named(first, second, named, monkeypatch, tmp_path):
    program = f"first, second = signal.SIG{first}, signal.SIG{second}\n"
    program += "if rank == 0: os.kill(os.getpid(), first)\n"
    program += "time.sleep(0.5); os.kill(os.getpid(), second)"
    stub(monkeypatch, tmp_path, program)
    with pytest.raises(DiptychError, match=f"process {named} of 2 was killed by SIG{[first, second][named]}"):
        launch.launch(2, "cpu")


@pytest.mark.parametrize(
    "last", ["time.sleep(60)", "signal.signal(15, signal.SIG_IGN); time.sleep(60)"], ids=["TERM", "KILL"]
)
def test_who_does_not_end_with_the_others_is_ended(last, monkeypatch, tmp_path):
    stub(monkeypatch, tmp_path, f"sys.exit(5) if rank else None\n{last}")
    monkeypatch.setattr(launch, "TERMINATE_AFTER", 0.3)
    monkeypatch.setattr(launch, "KILL_AFTER", 0.3)
    began = time.monotonic()
    assert launch.launch(2, "cpu") == 5
    assert time.monotonic() - began < 20 and nobody_left(tmp_path)


LISTENER = """
def hear(number, frame):
    (at / f'heard_{rank}').write_text(str(number))
    sys.exit(130 if number == 2 else 75)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, hear)
(at / f'ready_{rank}').touch()
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_to_the_launcher_is_a_signal_to_all(number, code, monkeypatch, tmp_path):
    stub(monkeypatch, tmp_path, LISTENER)
    started = launch.subprocess.Popen

    def last_one_sends(*arguments, **options):
        child = started(*arguments, **options)
        if options["env"]["RANK"] == "1":
            until(lambda: all((tmp_path / f"ready_{rank}").exists() for rank in (0, 1)))
            os.kill(os.getpid(), number)
        return child

    monkeypatch.setattr(launch.subprocess, "Popen", last_one_sends)
    assert launch.launch(2, "cpu") == code
    assert [(tmp_path / f"heard_{rank}").read_text() for rank in (0, 1)] == [str(int(number))] * 2
    assert nobody_left(tmp_path)


def test_no_orphan_is_left_when_the_launcher_is_killed(tmp_path):
    """It cannot pass SIGKILL on; its processes notice, and hear SIGTERM."""
    child = "from diptych.commands.launch import launched; assert launched()\n"
    child += f"at = __import__('pathlib').Path({str(tmp_path)!r})\n"
    child += f"import os, signal, sys, time\nrank = os.environ['RANK']\n{LISTENER}\n"
    program = "import sys\nfrom diptych.commands import launch\n"
    program += f"launch.COMMAND = (sys.executable, '-c', {child!r})\nlaunch.launch(2, 'cpu')\n"
    launcher = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": SRC})
    until(lambda: all((tmp_path / f"ready_{rank}").exists() for rank in (0, 1)))
    launcher.kill()
    launcher.wait()
    until(lambda: all((tmp_path / f"heard_{rank}").exists() for rank in (0, 1)), 10)
    assert {(tmp_path / f"heard_{rank}").read_text() for rank in (0, 1)} == {"15"}


def test_28_more_processes_than_gpus(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for device in ("auto", "cuda"):
        with pytest.raises(RecipeError, match="--gpus 9 needs 9 GPUs, but torch sees 1; use at most 1, or add"):
            launch.launch(9, device)
    with pytest.raises(RecipeError, match="pretrain.device=cuda:1 is one device and --gpus 2 asks for 2"):
        launch.launch(2, "cuda:1")
    for cores, most in ((1, 2), (6, 6)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        with pytest.raises(RecipeError, match=f"--gpus 999 on the CPU .* may use {cores}; use at most {most}"):
            launch.launch(999, "cpu")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RecipeError, match="leave it out under torchrun"):
        launch.launch(2, "cpu")


def test_28_no_way_between_processes(monkeypatch, tmp_path):
    """As in a container without a loopback device: nothing is started."""
    stub(monkeypatch, tmp_path, "sys.exit(0)")

    def unreachable(address, timeout):
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    monkeypatch.setattr(launch.socket, "create_connection", unreachable)
    with pytest.raises(
        RecipeError, match="cannot reach each other at 127.0.0.1 .Network is unreachable.; bring up"
    ) as error:
        launch.launch(2, "cpu")
    assert error.value.exit_code == 2 and not list(tmp_path.glob("pid_*"))


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"RANK": "1"}, "WORLD_SIZE"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}, "RANK"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_PROCID"),
    ],
)
def test_28_an_environment_for_several_processes_that_contradicts_itself(variables, name, monkeypatch, tmp_path):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(pretraining, "open_images", lambda *arguments: pytest.fail("an image was read"))
    code, _, err = diptych("pretrain", tmp_path, *SMALL, "--out", tmp_path / "run")
    assert code == 2 and name in refusal(err) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_28_a_limit_that_is_no_number_of_seconds(text, monkeypatch):
    monkeypatch.setenv(heartbeat.SILENT_VARIABLE, text)
    with pytest.raises(RecipeError, match=f"DIPTYCH_PEER_TIMEOUT='{text}' is not a number of seconds above 0"):
        heartbeat.peer_timeout()


def test_an_orphan_that_does_not_end_is_ended(monkeypatch, tmp_path):
    """The launcher is killed, and its processes do not react to SIGTERM."""
    child = "from diptych.commands import launch\nlaunch.ORPHAN_SECONDS = 0.5\nassert launch.launched()\n"
    child += f"at = __import__('pathlib').Path({str(tmp_path)!r})\n"
    child += "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    child += "(at / f\"pid_{os.environ['RANK']}\").write_text(str(os.getpid()))\ntime.sleep(60)\n"
    program = "import sys\nfrom diptych.commands import launch\n"
    program += f"launch.COMMAND = (sys.executable, '-c', {child!r})\nlaunch.launch(2, 'cpu')\n"
    launcher = subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": SRC})
    until(lambda: all((tmp_path / f"pid_{rank}").exists() for rank in (0, 1)))
    launcher.kill()
    launcher.wait()
    until(lambda: nobody_left(tmp_path), 10)


# ---- two processes that train


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Where two processes have trained through four faults, how the launcher ended, and in how many seconds after the crash."""
    out = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "COMMAND", (sys.executable, str(HERE / "two_faults.py")))
        patch.setattr(sys, "argv", ["diptych", str(out)])
        patch.delenv("RANK", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        with pytest.raises(DiptychError) as error:
            launch.launch(2, "cpu")
    steps = (out / "crash" / "checkpoints" / "last").stat().st_mtime
    return out, error.value, time.time() - steps


def said(out: Path, name: str) -> list[list[dict]]:
    """What each process wrote down of each run of that name."""
    return [
        [json.loads(line) for line in (out / f"{name}_rank_{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)
    ]


def weights(folder: Path) -> dict[str, bytes]:
    newest = checkpoints.newest(folder / "checkpoints")
    return {name: (newest / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}


def test_38_a_signal_to_one_process_stops_both_at_the_same_step(two):
    out = two[0]
    for stopped, resumed in said(out, "signal"):
        assert stopped["code"] == 75 and "saved at step 5 of 12; --resume continues" in stopped["message"]
        assert resumed == {"code": 0, "message": ""}
    assert weights(out / "signal") == weights(out / "quiet")


def test_31_a_loss_that_is_not_finite_on_one_process_stops_both_before_the_update(two):
    out = two[0]
    for rank, (stopped, resumed) in enumerate(said(out, "nan")):
        assert stopped["code"] == 5 and "at step 6; step 5 is saved" in stopped["message"]
        assert resumed == {"code": 0, "message": ""}
        crash = json.loads((out / "nan" / "crash" / f"step_0000006_rank_{rank}.json").read_text())
        assert crash["rank"] == rank and crash["gradient_norm"] == "nan"
    assert weights(out / "nan") == weights(out / "quiet")  # the saved step was the last good one


def test_an_unequal_share_of_images_is_told_before_training(two):
    out = two[0]
    first, second = said(out, "share")
    assert first == second and first[0]["code"] == 3
    assert first[0]["message"].startswith("process 1 reads 36 images") and "process 0 reads 48" in first[0]["message"]
    assert not (out / "share").exists()


def test_a_crash_of_one_process_ends_the_other_within_seconds(two):
    out, error, seconds = two
    assert error.exit_code == 1
    assert str(error).startswith("process 1 of 2 was killed by SIGKILL (the system does that when memory runs out)")
    if survivor := (out / "stderr_0").read_text():  # nothing where gloo's own thread has aborted it
        assert survivor.startswith("diptych: process 0 of 2 has lost another process, whose own message is the cause; ")
        assert survivor.endswith("run again with --resume\n") and survivor.count("\n") == 1
    assert seconds < 20  # the survivor has found out by itself: TERMINATE_AFTER was not needed
    newest = checkpoints.newest(out / "crash" / "checkpoints")
    assert newest.name in ("step_0000005", "step_0000006") and not Run(out / "crash").finished


def test_what_two_processes_began_one_can_finish(two):
    run = tiny_run(two[0] / "crash")
    assert run.finished and run.lines("end")[0]["step"] == 12
    with pytest.raises(CheckpointError):
        tiny_run(two[0] / "crash", seed=1)


# ---- the command itself

LONG = [
    *SMALL,
    "pretrain.epochs=100000",
    "pretrain.device=cpu",
    "pretrain.checkpoint_minutes=0",
    "images.size=32",
    "--resume",
]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def begin(words: list[str], out: Path) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": f"{SRC}{os.pathsep}{os.environ['PYTHONPATH']}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*words, "--out", str(out)], env=env, text=True, stderr=subprocess.PIPE)
    last, began = out / "checkpoints" / "last", time.time()
    until(lambda: last.exists() and last.stat().st_mtime > began or process.poll() is not None, 200)
    assert process.poll() is None, process.stderr.read()
    return process


@pytest.mark.slow
def test_38_gpus_2_survives_what_befalls_it(tmp_path):
    """`diptych pretrain --gpus 2`: a signal to the second process, then again and SIGKILL to the launcher, then to a process."""
    photos, out = photographs(tmp_path / "photos"), tmp_path / "run"
    words = [sys.executable, "-m", "diptych", "pretrain", str(photos), *LONG, "--gpus", "2"]
    launcher = begin(words, out)
    pids = children(launcher.pid)
    os.kill(pids[1], signal.SIGTERM)
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 75 and "saved at step" in err and "Traceback" not in err
    assert not any(map(alive, pids))

    launcher = begin(words, out)
    pids = children(launcher.pid)
    launcher.kill()
    launcher.wait()
    until(lambda: not any(map(alive, pids)), 60)
    with launcher.stderr as stderr:
        assert "saved at step" in stderr.read()

    launcher = begin(words, out)
    pids = children(launcher.pid)
    os.kill(pids[0], signal.SIGKILL)
    began = time.monotonic()
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 1 and time.monotonic() - began < 20
    assert err.splitlines()[-1].startswith("diptych: process 0 of 2 was killed by SIGKILL") and "Traceback" not in err
    assert checkpoints.newest(out / "checkpoints") is not None and not any(map(alive, pids))


@pytest.mark.slow
def test_38_torchrun_itself_returns_1(tmp_path):
    """The processes end as promised; what torchrun returns is its own."""
    photos, out = photographs(tmp_path / "photos"), tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "diptych"]
    launcher = begin([*torchrun, "pretrain", str(photos), *LONG], out)
    pids = children(launcher.pid)
    os.kill(pids[1], signal.SIGTERM)
    _, err = launcher.communicate(timeout=90)
    assert launcher.returncode == 1
    assert err.count("diptych: ") >= 2 and "saved at step" in err and "exitcode  : 75" in err
    assert not any(map(alive, pids))

    launcher = begin([*torchrun, "pretrain", str(photos), *LONG], out)
    pids = children(launcher.pid)
    os.kill(pids[1], signal.SIGKILL)
    _, err = launcher.communicate(timeout=90)
    assert launcher.returncode == 1 and "has lost another process" in err
    assert checkpoints.newest(out / "checkpoints") is not None and not any(map(alive, pids))
