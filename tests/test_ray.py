"""The Ray engine: the bytes of one process, whoever is killed; what a user can mend is one line; nothing stays behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pytest

from dispatch_rl import record
from dispatch_rl.decoding.families import Family
from dispatch_rl.errors import UserError
from dispatch_rl.replay import ray_engine
from dispatch_rl.replay.collector import Collector
from dispatch_rl.replay.ray_session import Notices, Pool, actors_for
from tests.test_recording import contents, to_record

ROOT = Path(__file__).resolve().parents[1]
HANGS_S = 900
"""After so long a test that waits is red instead of waiting for ever."""
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason='needs Ray: pip install "ray[data]"')
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")

Line = Callable[..., list[str]]


@pytest.fixture
def line(other_folder: Path, tmp_path: Path) -> Line:
    """Options for three parts of sixteen texts in eight shards each."""
    (tmp_path / "prompts.txt").write_text("\n".join("Problem: " + "1 + 2 " * (i % 7) + f"= {i}" for i in range(40)))

    def options(output: str, *more: str) -> list[str]:
        students = ", ".join(f"{name}: {{path: {other_folder}/{name}}}" for name in ("tiny", "twin"))
        argv = [f"--output={tmp_path}/{output}", f"--family.target.path={other_folder}/target", f"--family.students={{{students}}}"]
        argv += [f"--prompts.source={tmp_path}/prompts.txt", "--prompts.max_new_tokens=60", "--sampling.temperature=1"]
        return [*argv, "--num_prompts=16", "--recording.shard_size=2", "--recording.batch_size=2", *more]

    return options


@contextmanager
def recording(argv: list[str], home: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run the command with Ray; it is ended, and what it started with it, if the test fails."""
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "dispatch_rl.record", "--engine=ray", *argv]
    variables["HOME"] = str(home)
    pipe = subprocess.PIPE
    # Tests that run in the background of a shell ignore Ctrl-C, and what they start would, too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate()


def wait_for(process: "subprocess.Popen[str]", event: Callable[[], bool]) -> None:
    """Wait until something has happened; fail with what the process says if it ends before, or hangs."""
    for _ in range(HANGS_S * 100):
        if event():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    pytest.fail("Ray hangs")


def kill_an_actor(output: Path) -> bool:
    """Kill an actor that is in the middle of a shard, if one can be caught there and others have finished shards."""
    for attempts in output.glob(".*.attempts"):
        pid = _last_line(attempts)
        if not pid or not list(output.glob("*/shard-?????")):
            continue
        with suppress(ProcessLookupError):
            # Stopped, it cannot end its shard between the look and the blow.
            os.kill(int(pid), signal.SIGSTOP)
            caught = _last_line(attempts) == pid
            os.kill(int(pid), signal.SIGKILL if caught else signal.SIGCONT)
            return caught
    return False


def _last_line(path: Path) -> str:
    """Return the last line of a file that may be gone."""
    try:
        return path.read_text().strip().rpartition("\n")[2]
    except FileNotFoundError:
        return ""


def ray_processes(session: int) -> list[str]:
    """Return the command lines of processes of Ray's that a command started, by its session."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "stat").read_text().rpartition(")")[2].split()
            if int(words[3]) == session and words[0] != "Z":
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has just ended
    return found


@needs_ray
@needs_proc
def test_four_actors_and_the_death_of_one_change_no_byte(line: Line, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One process, and four actors of which one is killed in the middle of a shard: every file of every part is the same."""
    record.main(line("alone"))
    summary = capfd.readouterr().out
    with recording(line("pool", "--num_actors=4"), tmp_path) as process:
        wait_for(process, lambda: kill_an_actor(tmp_path / "pool"))
        out, err = process.communicate(timeout=HANGS_S)
        assert process.returncode == 0, err
    assert contents(tmp_path / "pool") == contents(tmp_path / "alone")
    told = [[words for words in text.splitlines() if "tokens that match" in words] for text in (out.replace("/pool", "/alone"), summary)]
    assert told[0] == told[1] != []
    said = [words for words in err.replace("\r", "\n").splitlines() if words.strip() and not words.startswith("recording:")]
    assert said[0] == "Ray: 4 actors with 1 CPU and 0 GPUs each; 1 machine"
    assert sum(words.startswith("Ray: A worker died or was killed") for words in said) == 1
    assert len(said) <= 4, err
    assert not (tmp_path / ".ray").exists()


@needs_ray
@needs_proc
def test_an_interrupted_pool_leaves_nothing_behind_and_another_goes_on(line: Line, tmp_path: Path) -> None:
    """Ctrl-C: a word, status 130, no process and no file that is not part of a recording; one process finishes it, to the same bytes."""
    part = ("--part=test", "--num_prompts=64")  # enough that the word comes in time
    record.main(line("alone", *part))
    with recording(line("pool", *part, "--num_actors=1"), tmp_path) as process:
        wait_for(process, lambda: bool(list(tmp_path.glob("pool/test/shard-?????"))))
        started = ray_processes(process.pid)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=HANGS_S)[1]
    assert (process.returncode, err.splitlines()[-1]) == (130, "interrupted"), err
    assert "Traceback" not in err
    assert any("raylet" in words for words in started)
    for _ in range(HANGS_S):
        left = ray_processes(process.pid)
        if not left:
            break
        time.sleep(1)
    assert not left
    assert [path.name for path in (tmp_path / "pool").iterdir()] == ["test"]
    assert not (tmp_path / "pool" / "test" / "shard-00031").exists(), "it came too late to interrupt anything"
    record.main(line("pool", *part))
    assert contents(tmp_path / "pool") == contents(tmp_path / "alone")


def one_shard(index: int, number: int) -> pa.Table:
    """Return what an actor is given."""
    return pa.table({"recording": [index], "shard": [number]})


def test_what_a_user_can_mend_comes_back_as_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of somebody else's, a file in the way, a shard that kills whoever takes it; the last is tried again by the next command."""
    monkeypatch.chdir(tmp_path)
    made = to_record(tmp_path / "traces")
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "thesis.tex").touch()

    def said(folder: Path, number: int = 2) -> str:
        actor = ray_engine._Actor([replace(made, folder=folder)], threads=1, folder=tmp_path)
        answer = actor(one_shard(0, number)).to_pylist()
        assert [(row["recording"], row["shard"]) for row in answer] == [(0, number)]
        return str(answer[0]["error"])

    assert said(tmp_path / "traces") == f"output: {tmp_path}/traces is not empty and holds no recording; choose another folder"
    (tmp_path / "file").touch()
    assert said(tmp_path / "file" / "train").startswith(f"{tmp_path}/file")
    attempts = ray_engine._attempts(tmp_path / "new" / "train", 2)
    attempts.parent.mkdir()
    attempts.write_text("1\n2\n3\n4\n5\n")
    assert said(tmp_path / "new" / "train").startswith("engine: 5 actors died one after the other at train-shard-00002, often for want of")
    ray_engine._forget_attempts([replace(made, folder=tmp_path / "new" / "train")], [(0, 2)])
    assert said(tmp_path / "new" / "train") == "None"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["train"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--num_actors=0"], "num_actors: 0 is not at least 1"),
        (["--gpus_per_actor=0"], "gpus_per_actor: 0 is not at least 1"),
        (["--family.device=cuda:0"], "family.device: Ray hands out the GPUs, so with --engine ray it is auto, cuda or cpu, not cuda:0"),
        (["--ray_address=127.0.0.1:1"], "ray_address: nothing answers at 127.0.0.1:1: "),
        (["--ray_address=toaster"], "ray_address: 'toaster' is neither HOST:PORT nor auto"),
        (["--ray_address=ray://head:10001"], "ray_address: 'ray://head:10001' is neither"),
    ],
)
def test_bad_pools_are_one_line(line: Line, tmp_path: Path, options: list[str], expected: str) -> None:
    """No actors, a GPU by number, addresses where nobody is: found before anything is started or written."""
    with pytest.raises(UserError) as caught:
        record.main(line("pool", "--engine=ray", *options))
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pool").exists()


def test_without_ray_a_line_says_how_to_install_it(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package does not need it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'^engine: Ray is not installed; pip install "ray\[data\]"$'):
        record.main(line("pool", "--engine=ray"))


@pytest.mark.parametrize(
    ("there", "pool", "device", "expected"),
    [
        ({"CPU": 8.0}, Pool(), "auto", (4, 0)),
        ({"CPU": 8.0}, Pool(num_actors=3), "auto", (3, 0)),
        ({"CPU": 1.0}, Pool(), "auto", (1, 0)),
        ({"CPU": 8.0, "GPU": 3.0}, Pool(), "auto", (3, 1)),
        ({"CPU": 8.0, "GPU": 3.0}, Pool(), "cuda", (3, 1)),
        ({"CPU": 8.0, "GPU": 3.0}, Pool(), "cpu", (4, 0)),
        ({"CPU": 8.0, "GPU": 4.0}, Pool(gpus_per_actor=2), "auto", (2, 2)),
        ({"CPU": 800.0, "GPU": 400.0}, Pool(), "auto", (100, 1)),
    ],
)
def test_an_actor_for_every_gpu_or_else_for_every_cpu(there: dict[str, float], pool: Pool, device: str, expected: tuple[int, int]) -> None:
    """With two threads each; never more than there are shards."""
    actors = actors_for(there, pool, device, threads=2, shards=100, own=True)
    assert (actors.number, actors.gpus) == expected


def test_more_gpus_than_this_machine_has_are_refused() -> None:
    """A cluster may grow."""
    for pool, device in ((Pool(num_actors=3), "auto"), (Pool(gpus_per_actor=4), "cuda")):
        with pytest.raises(UserError, match=r"^num_actors: \d with \d GPUs each need \d GPUs; there are 2$"):
            actors_for({"CPU": 8.0, "GPU": 2.0}, pool, device, threads=1, shards=100, own=True)
        assert actors_for({"CPU": 8.0, "GPU": 2.0}, pool, device, threads=1, shards=100, own=False).number >= 1


def test_of_what_ray_says_the_first_sentence_remains() -> None:
    """In plain letters; that a task is tried again follows from the death of an actor."""
    stream = StringIO()
    notices = Notices(stream)
    notices.write("\x1b[33m(raylet)\x1b[0m A worker died. To troubleshoot\nthe problem, see ray 2.60 logs.\n")
    notices.write("\x1b[33m(raylet, ip=10.0.0.2)\x1b[0m Task MapWorker(x).submit failed. There are infinite retries\n")
    notices.write("\n")
    assert stream.getvalue() == "Ray: A worker died\n"


def test_the_same_class_writes_the_same_bytes_in_any_order(other: Family, tmp_path: Path) -> None:
    """Shards backwards, several in a call, some there already, by a second collector: as an actor may be given them."""
    forwards, backwards = to_record(tmp_path / "forwards"), to_record(tmp_path / "backwards")
    Collector([forwards], other)({"recording": [0] * 4, "shard": [0, 1, 2, 3]})
    collector = Collector([forwards, backwards], other)
    collector({"recording": [1, 0, 1], "shard": [3, 1, 1]})
    Collector([backwards], other)({"recording": [0, 0, 0], "shard": [2, 1, 0]})
    assert contents(backwards.folder) == contents(forwards.folder)
