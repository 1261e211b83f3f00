import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest
from recorded import wait_until

from fanin.errors import ConfigError
from fanin.sweep.workers import Pool


@pytest.fixture
def pool():
    pool = Pool("handlers:Handler", arguments={}, size=2, threads=1)
    pool.fill(1)
    yield pool
    pool.close()


def hear(pool, kind, *, seconds=30.0):
    """The next event of a kind."""
    found = []

    def listen():
        found.extend(event for event in pool.wait(0.05) if event.kind == kind)
        return found

    wait_until(listen, seconds=seconds)
    return found[0]


def ask(pool, kind, payload=None):
    """Have a free worker do something and wait for its answer."""
    pool.fill(1)
    worker = pool.free()[0]
    worker.do(kind, payload, task=kind)
    answer = hear(pool, "done").payload
    worker.task = None
    return answer


def zombies():
    return {one for one in psutil.Process().children(recursive=True) if gone(one.pid)}


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


@pytest.mark.parametrize(
    ("death", "cause"),
    [
        (-signal.SIGKILL, "killed by SIGKILL (out of memory, or killed by hand)"),
        (-signal.SIGSEGV, "killed by SIGSEGV (crash in native code)"),
        (-signal.SIGABRT, "killed by SIGABRT (crash in native code)"),
        (7, "left with exit code 7"),
    ],
)
def test_a_death_is_noticed_and_named_with_its_cause(pool, death, cause):
    ask(pool, "echo")
    pool.free()[0].do("die", int(death), task="dying")
    event = hear(pool, "died")
    assert (event.payload, event.worker.task) == (cause, "dying")
    assert ask(pool, "echo", 5) == 5  # by another worker


def test_a_worker_ends_by_sigterm_once_its_task_has_ended_cleanly(pool):
    worker = pool.free()[0]
    worker.do("wait_for_stop", None, task="run")
    hear(pool, "record")
    os.kill(worker.process.pid, signal.SIGTERM)
    assert hear(pool, "died").payload == "killed by SIGTERM"


def test_an_idle_worker_ends_by_sigterm_at_once(pool):
    pid = ask(pool, "pid")
    os.kill(pid, signal.SIGTERM)
    assert hear(pool, "died").payload == "killed by SIGTERM"


def test_a_stop_is_heard_between_two_steps_of_a_task(pool):
    worker = pool.free()[0]
    worker.do("wait_for_stop", None, task="run")
    hear(pool, "record")
    worker.stop("enough")
    assert hear(pool, "done").payload == "enough"


def test_a_stop_of_the_task_before_does_not_stop_the_next(pool):
    worker = pool.free()[0]
    worker.do("echo", None, task="short")
    worker.stop("too late")
    hear(pool, "done")
    worker.do("wait_for_stop", None, task="next")
    hear(pool, "record")
    worker.stop("now")
    assert hear(pool, "done").payload == "now"


def test_a_stop_that_comes_right_behind_its_task_is_not_lost(pool):
    for number in range(30):
        worker = pool.free()[0]
        worker.do("wait_for_stop", None, task="run")
        worker.stop(f"stop {number}")
        assert hear(pool, "done").payload == f"stop {number}"
        worker.task = None


def test_code_that_never_looks_is_cut_short_by_an_exception_that_no_except_exception_catches(pool, tmp_path):
    worker = pool.free()[0]
    worker.do("hold_on", str(tmp_path / "cut"), task="run")
    hear(pool, "record")
    worker.stop("enough")
    assert hear(pool, "done").payload is None
    assert (tmp_path / "cut").read_text() == "Stopped: enough"


def test_records_are_answered_in_order(pool):
    worker = pool.free()[0]
    worker.do("tell", 2, task="run")
    answers = []
    for verdict in ("go on", "prune"):
        answers.append(hear(pool, "record").payload)
        worker.reply(verdict)
    assert answers == [0, 1]
    assert hear(pool, "done").payload == ["go on", "prune"]


def test_what_a_task_raises_comes_back_as_a_failure_that_tells_bad_input_and_full_memory_apart(pool):
    marks = {}
    for error in (ConfigError("x: bad"), MemoryError(), RuntimeError("CUDA out of memory"), KeyError("a")):
        worker = pool.free()[0]
        worker.do("fail", error, task="run")
        failure = hear(pool, "failed").payload
        worker.task = None
        message, _, place = failure.message.partition(" (")
        assert place.startswith("handlers.py, line ") or failure.user, "where the project's own code failed"
        marks[message] = (failure.user, failure.memory)
    assert marks == {
        "x: bad": (True, False),
        "MemoryError": (False, True),
        "RuntimeError: CUDA out of memory": (False, True),
        "KeyError: 'a'": (False, False),
    }


def test_a_handler_that_cannot_be_made_is_a_failure_and_not_a_silence():
    pool = Pool("handlers:Handler", arguments={"broken": True}, size=1, threads=1)
    try:
        pool.fill(1)
        pool.free()[0].do("echo", None, task="run")
        assert hear(pool, "failed").payload.message == "RuntimeError: no such device (handlers.py, line 15)"
    finally:
        pool.close()


def test_a_frozen_worker_and_a_busy_one_do_not_outlive_the_pool(pool):
    pool.fill(2)
    frozen, busy = pool.workers
    pids = [worker.process.pid for worker in pool.workers]
    busy.do("sleep", 60, task="run")
    hear(pool, "record")
    os.kill(frozen.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 20, "the task takes 60"
    wait_until(lambda: all(map(gone, pids)))


def test_the_pool_goes_on_when_its_fork_server_is_killed(pool):
    pool.fill(2)
    worker = pool.workers[0]
    pids = [one.process.pid for one in pool.workers]
    worker.do("sleep", 60, task="run")
    hear(pool, "record")
    os.kill(psutil.Process(worker.process.pid).ppid(), signal.SIGKILL)
    assert hear(pool, "died").payload == "vanished together with its fork server"
    wait_until(lambda: pool.wait(0.05) is not None and not pool.workers)
    assert ask(pool, "echo", "back") == "back"
    wait_until(lambda: all(map(gone, pids)))  # none trains on behind our back


def test_a_fork_server_that_refuses_while_it_is_dying_is_waited_for(pool, monkeypatch):
    connect, refusals = forkserver.connect_to_new_process, iter([ConnectionRefusedError] * 4)

    def refused_at_first(descriptors):
        for refusal in refusals:
            raise refusal
        return connect(descriptors)

    monkeypatch.setattr(forkserver, "connect_to_new_process", refused_at_first)
    pool.fill(2)
    assert len(pool.workers) == 2 and next(refusals, None) is None


def test_the_fork_server_and_the_workers_do_not_mind_the_signals_of_the_group(pool):
    worker = pool.free()[0]
    worker.do("wait_for_stop", None, task="run")
    hear(pool, "record")
    server = psutil.Process(worker.process.pid).parent()
    os.kill(server.pid, signal.SIGINT)
    os.kill(server.pid, signal.SIGTERM)
    os.kill(worker.process.pid, signal.SIGINT)
    assert not pool.wait(0.3)
    worker.stop("enough")
    assert hear(pool, "done").payload == "enough"
    assert server.is_running() and server.status() != "zombie"


def test_a_dismissed_worker_is_replaced_by_a_fresh_one(pool):
    first = ask(pool, "pid")
    pool.dismiss(pool.free()[0])
    assert not pool.free()
    assert hear(pool, "died").payload == "dismissed"
    assert ask(pool, "pid") != first


TALKATIVE = """
from fanin.sweep.workers import Pool
pool = Pool("handlers:Handler", arguments={}, size=2, threads=1)
pool.fill(2)
for number, worker in enumerate(pool.free()):
    worker.do("say", number, task=number)
done = 0
while done < 2:
    done += sum(event.kind == "done" for event in pool.wait(1))
print("over", flush=True)
pool.close()
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_two_workers_print_is_there_when_they_are_done_and_no_line_is_torn(unbuffered):
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", TALKATIVE]
    text = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout
    *lines, last = text.splitlines()
    assert sorted(lines) == sorted(f"worker {number} says {count}" for number in (0, 1) for count in range(300))
    assert last == "over"


def test_a_worker_may_have_children_of_its_own(pool):
    assert ask(pool, "have_a_child") == 0


def test_workers_that_die_leave_no_descriptor_and_no_zombie(pool):
    def die(count):
        for _ in range(count):
            pool.fill(1)
            pool.free()[0].do("die", 1, task="run")
            hear(pool, "died")
        return len(os.listdir("/proc/self/fd"))

    others = zombies()  # of tests before this one
    before = die(3)
    assert die(20) <= before
    wait_until(lambda: not zombies() - others)  # one that nobody waits for would stay
