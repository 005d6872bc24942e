"""Row 38 and its neighbours in docs/faults.md: signals are heard wherever a process waits, and a lost terminal ends no run."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from spoiled import SMALL, photographs, refusal
from test_processes import HERE, SRC, alive, children, until

from diptych.runs import checkpoints
from diptych.runs.run import Run

# The shell of a background job ignores SIGINT: what a test starts hears it all the same.
FRESH = ["env", "--default-signal=INT,HUP,TERM,USR1"]
NOHUP = ["env", "--default-signal=INT,TERM,USR1", "--ignore-signal=HUP"]
TRAIN = [*SMALL, "pretrain.device=cpu", "images.size=32", "pretrain.checkpoint_minutes=0"]
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Whatever a test has started has ended after it; killed launchers take their processes along."""
    yield
    while started:
        process = started.pop()
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def environment(**variables: object) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in NAMES}
    path = f"{SRC}{os.pathsep}{os.environ['PYTHONPATH']}"
    return env | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in variables.items()}


def start(*words: object, wrapper=FRESH, env=None, **options) -> subprocess.Popen:
    """Start Python on the words; standard error is a pipe unless an option says otherwise."""
    options = {"stderr": subprocess.PIPE, "text": True} | options
    started.append(subprocess.Popen([*wrapper, sys.executable, *map(str, words)], env=env or environment(), **options))
    return started[-1]


def ended(process: subprocess.Popen, seconds: float = 60) -> tuple[int, str]:
    """The exit code and standard error of a process that ends within so many seconds."""
    _, err = process.communicate(timeout=seconds)
    return process.returncode, err or ""


# ---- one process, whose main thread is where no handler runs

BLOCKED = """
import ctypes, pathlib, sys
from diptych.base import signals
from diptych.base.signals import StopRequest
from diptych.commands import ending

signals.PATIENCE = 1.0

def main():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    pathlib.Path(sys.argv[1]).touch()
    libc.pthread_mutex_lock(mutex)  # it holds it already: for ever, as a collective whose peer is gone

def loop():
    with StopRequest():
        main()

ending.run_command(loop if sys.argv[2] == "loop" else main)
"""


def blocked(tmp_path: Path, where: str, **options) -> subprocess.Popen:
    process = start("-c", BLOCKED, tmp_path / "ready", where, **options)
    until(lambda: (tmp_path / "ready").exists())
    time.sleep(0.2)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT], ids=lambda n: n.name)
def test_38_outside_the_loop_the_first_signal_ends_a_blocked_process(number, tmp_path):
    process = blocked(tmp_path, "outside")
    process.send_signal(number)
    code, err = ended(process, 15)
    assert code == (130 if number == signal.SIGINT else 75)
    assert refusal(err) == f"diptych: {number.name}: stopped; run the same command again (pretrain: with --resume)"


@pytest.mark.parametrize("where", ["outside", "loop"])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_38_a_second_interrupt_ends_a_blocked_process_at_once(first, where, tmp_path):
    process = blocked(tmp_path, where)
    process.send_signal(first)
    time.sleep(0.3)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, err = ended(process, 15)
    assert code == 130 and time.monotonic() - began < 2
    assert refusal(err) == "diptych: stopped at once; the last checkpoint is kept"


def test_38_under_nohup_a_hangup_is_not_heard(tmp_path):
    process = blocked(tmp_path, "outside", wrapper=NOHUP)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    code, err = ended(process, 15)
    assert code == 75 and "diptych: SIGTERM: stopped" in err


def test_38_nobody_reads_the_pipe_of_standard_error(tmp_path):
    """It is full: a line more would hold up the end."""
    process = blocked(tmp_path, "loop")
    os.set_blocking(process.stderr.fileno(), True)
    other = os.open(f"/proc/{process.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
    try:
        while os.write(other, bytes(4096)):
            pass
    except BlockingIOError:
        os.close(other)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    process.stderr.close()


@pytest.mark.slow
def test_38_signals_are_heard_while_waiting_for_the_first_process(tmp_path):
    """Started by hand as the second of two; the first never answers."""
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        first.listen()
        port = first.getsockname()[1]
        env = environment(RANK=1, WORLD_SIZE=2, LOCAL_RANK=0, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        photos = photographs(tmp_path / "photos")
        both = []
        for _ in range(2):
            both.append(start("-m", "diptych", "pretrain", photos, *TRAIN, "--out", tmp_path / "run", env=env))
            first.settimeout(100)
            connection, _ = first.accept()  # it is at the rendezvous
            time.sleep(0.5)
            both[-1].send_signal(signal.SIGINT if len(both) == 2 else signal.SIGTERM)
            if len(both) == 2:
                time.sleep(0.3)
                began = time.monotonic()
                both[-1].send_signal(signal.SIGINT)
            code, _ = ended(both[-1], 15)
            assert code == (130 if len(both) == 2 else 75)
            connection.close()
    assert time.monotonic() - began < 2


# ---- two processes, one of which does not answer any more

LAUNCHER = """
import sys
from diptych.commands import ending, launch
launch.COMMAND = (sys.executable, sys.argv.pop(1))
launch.TERMINATE_AFTER, launch.KILL_AFTER = 3.0, 1.0
ending.run_command(lambda: launch.launch(2, "cpu"))
"""


@pytest.fixture
def half_stopped(tmp_path):
    """Starts a launcher and two processes that train without an end; one is stopped, so that the other waits for it."""
    pids = []

    def begin(which: int = 1, **variables) -> tuple[subprocess.Popen, list[int]]:
        out = tmp_path / "run"
        launcher = start("-c", LAUNCHER, HERE / "endless.py", out, env=environment(**variables))
        until(lambda: (out / "checkpoints" / "last").exists() or launcher.poll() is not None)
        assert launcher.poll() is None, launcher.stderr.read()
        pids.extend(children(launcher.pid))
        os.kill(pids[which], signal.SIGSTOP)
        time.sleep(0.5)
        return launcher, pids

    yield begin
    for pid in filter(alive, pids):
        os.kill(pid, signal.SIGKILL)


def test_38_two_interrupts_end_both_though_one_is_stopped(half_stopped):
    launcher, pids = half_stopped()
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert launcher.poll() is None
    began = time.monotonic()
    launcher.send_signal(signal.SIGINT)
    code, err = ended(launcher, 15)
    assert code == 130 and time.monotonic() - began < 2
    assert refusal(err) == "diptych: interrupted; no partial files remain"
    until(lambda: not any(map(alive, pids)), 2)


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow), (signal.SIGINT, 130)]
)
def test_38_one_signal_is_enough_though_one_is_stopped(number, code, half_stopped):
    launcher, pids = half_stopped()
    launcher.send_signal(number)
    got, err = ended(launcher, 40)
    assert got == code
    assert f"diptych: {number.name}: stopped without saving, since process 1 of 2 has sent no heartbeat for" in err
    assert not any(map(alive, pids))


def test_38_no_orphan_though_one_is_stopped_when_the_launcher_is_killed(half_stopped, tmp_path):
    """The system continues the one that was stopped, and both save."""
    launcher, pids = half_stopped()
    launcher.kill()
    _, err = ended(launcher)
    until(lambda: not any(map(alive, pids)), 20)
    assert "diptych: SIGTERM: saved at step" in err


@pytest.mark.parametrize(
    "which", [0, pytest.param(1, marks=pytest.mark.slow)]
)  # the first holds the store in which they count
def test_38_a_process_that_does_not_run_is_noticed(which, half_stopped):
    launcher, pids = half_stopped(which, DIPTYCH_PEER_TIMEOUT=3)
    code, err = ended(launcher, 30)
    assert code == 1
    assert refusal(err).startswith(
        f"diptych: process {which} of 2 has sent no heartbeat for 4 s: it hangs, or the network does; "
    )
    assert refusal(err).endswith("run again with --resume")
    assert not any(map(alive, pids))


@pytest.mark.slow
def test_38_a_suspended_job_goes_on(half_stopped):
    """Stopped for longer than the limit, all of them: nobody blames anybody afterwards."""
    launcher, pids = half_stopped(DIPTYCH_PEER_TIMEOUT=3)
    os.kill(pids[0], signal.SIGSTOP)
    time.sleep(6)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    time.sleep(4)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGTERM)
    code, err = ended(launcher, 40)
    assert code == 75 and "diptych: SIGTERM: saved at step" in err


@pytest.mark.slow
def test_38_slow_work_of_one_process_is_waited_for(tmp_path):
    launcher = start(
        "-c", LAUNCHER, HERE / "endless.py", tmp_path / "run", "slow", env=environment(DIPTYCH_PEER_TIMEOUT=3)
    )
    code, err = ended(launcher)
    assert (code, err) == (0, "")
    assert Run(tmp_path / "run").finished


# ---- a terminal that is closed, a reader that has gone


@pytest.mark.parametrize(("stream", "gpus"), [
    ("stdout", []),
    pytest.param("stdout", ["--gpus", "2"], marks=pytest.mark.slow),
    pytest.param("stderr", ["--gpus", "2"], marks=pytest.mark.slow),
])  # fmt: skip
def test_38_a_reader_that_goes_ends_no_run(stream, gpus, tmp_path):
    """`diptych pretrain ... 2>&1 >/dev/null | head -1`, and warnings that are errors."""
    reading, writing = os.pipe()
    os.close(reading)
    words = ["-m", "diptych", "pretrain", photographs(tmp_path / "photos"), *TRAIN, "--out", tmp_path / "run"]
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | {stream: writing}
    process = start(*words, *gpus, env=environment(PYTHONWARNINGS="error"), **options)
    os.close(writing)
    code, err = ended(process, 100)
    assert code == 0 and "Traceback" not in err
    assert Run(tmp_path / "run").finished


@pytest.mark.parametrize(("wrapper", "gpus"), [
    pytest.param(FRESH, [], id="terminal-one"),
    pytest.param(NOHUP, [], id="nohup-one", marks=pytest.mark.slow),
    pytest.param(FRESH, ["--gpus", "2"], id="terminal-two", marks=pytest.mark.slow),
    pytest.param(NOHUP, ["--gpus", "2"], id="nohup-two"),
])  # fmt: skip
def test_38_a_terminal_that_closes_loses_nothing(wrapper, gpus, tmp_path):
    """The hang-up saves; under nohup it is not heard, and SIGTERM saves later. No message can be written any more."""
    ours, terminal = os.openpty()
    out, photos = tmp_path / "run", photographs(tmp_path / "photos")
    last = out / "checkpoints" / "last"  # names the newest
    words = ["-m", "diptych", "pretrain", photos, *TRAIN, "pretrain.epochs=100000", "--out", out]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    process = start(*words, *gpus, wrapper=["setsid", "--ctty", *wrapper], **streams)
    os.close(terminal)
    end = time.monotonic() + 120
    while process.poll() is None and not last.exists():
        assert time.monotonic() < end, "no checkpoint"
        if select.select([ours], [], [], 0.05)[0]:
            os.read(ours, 4096)  # what a terminal would show
    assert process.poll() is None
    saved = last.read_text()
    os.close(ours)
    if wrapper is NOHUP:
        until(lambda: last.read_text() > saved or process.poll() is not None)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75
    assert last.read_text() > saved and checkpoints.newest(out / "checkpoints").name == last.read_text().strip()
