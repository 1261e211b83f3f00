import json
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from fanin.spool import Spool, SpoolBusy, decode, digest, encode, read

ODD_VALUES = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 0.1, 1 / 3, 1e-300]


def epochs_in(path):
    return [record["epoch"] for record in read(path)[0] if record["kind"] == "epoch"]


def test_every_float_survives_bit_for_bit(tmp_path):
    with Spool(tmp_path / "spool.jsonl") as spool:
        spool.append("epoch", epoch=0, metrics={str(i): value for i, value in enumerate(ODD_VALUES)})
    (record,), _ = read(tmp_path / "spool.jsonl")
    assert [value.hex() for value in record["metrics"].values()] == [value.hex() for value in ODD_VALUES]


def test_a_line_is_ordinary_json():
    line = encode({"kind": "epoch", "epoch": 3, "metrics": {"val/loss": 0.5}})
    assert json.loads(line)["metrics"] == {"val/loss": 0.5}
    assert decode(line[:-1])["epoch"] == 3


@pytest.mark.parametrize("position", range(0, 60, 7))
def test_a_changed_byte_is_noticed(position):
    line = bytearray(encode({"kind": "epoch", "epoch": 3, "metrics": {"val/loss": 0.5}})[:-1])
    line[position] ^= 1
    assert decode(bytes(line)) is None


def test_numbers_of_numpy_are_written_as_numbers(tmp_path):
    import numpy as np

    with Spool(tmp_path / "spool.jsonl") as spool:
        spool.append("epoch", epoch=0, metrics={"a": np.float32(0.5), "b": np.int64(3)})
    assert read(tmp_path / "spool.jsonl")[0][0]["metrics"] == {"a": 0.5, "b": 3.0}


@pytest.mark.parametrize("torn", [b"x", b'{"kind":"epoch","ep', b"\0" * 40, b'{"kind":"end"}\n'])
def test_opening_cuts_a_torn_tail_and_keeps_the_intact_records(tmp_path, torn, caplog):
    path = tmp_path / "spool.jsonl"
    with Spool(path) as spool:
        spool.append("epoch", epoch=0, metrics={})
    with path.open("ab") as file:
        file.write(torn)
    with Spool(path) as spool:
        spool.append("epoch", epoch=1, metrics={})
    assert epochs_in(path) == [0, 1]
    assert len(path.read_bytes().splitlines()) == 2
    assert "torn record" in caplog.text


def test_every_possible_tear_of_the_last_record_leaves_the_others(tmp_path):
    path = tmp_path / "spool.jsonl"
    whole = [encode({"kind": "epoch", "epoch": epoch, "metrics": {}}) for epoch in range(3)]
    for length in range(len(whole[2])):
        path.write_bytes(b"".join(whole[:2]) + whole[2][:length])
        with Spool(path) as spool:
            assert spool.append("epoch", epoch=2, metrics={})
        assert epochs_in(path) == [0, 1, 2]


def test_a_damaged_record_in_the_middle_costs_only_itself(tmp_path, caplog):
    path = tmp_path / "spool.jsonl"
    lines = [encode({"kind": "epoch", "epoch": epoch, "metrics": {}}) for epoch in range(3)]
    path.write_bytes(lines[0] + lines[1].replace(b"epoch", b"epocH") + lines[2])
    Spool(path).close()
    assert epochs_in(path) == [0, 2]
    assert "damaged record" in caplog.text


def test_reading_goes_on_where_it_stopped_and_waits_for_the_rest_of_a_line(tmp_path):
    path = tmp_path / "spool.jsonl"
    first, second = (encode({"kind": "epoch", "epoch": epoch, "metrics": {}}) for epoch in (0, 1))
    path.write_bytes(first + second[:20])
    records, offset = read(path)
    assert [record["epoch"] for record in records] == [0] and offset == len(first)
    assert read(path, offset) == ([], offset)
    path.write_bytes(first + second)
    records, offset = read(path, offset)
    assert [record["epoch"] for record in records] == [1] and offset == len(first + second)


def test_an_offset_that_fits_no_line_reads_everything_again(tmp_path):
    path = tmp_path / "spool.jsonl"
    path.write_bytes(encode({"kind": "epoch", "epoch": 0, "metrics": {}}))
    for offset in (3, 10_000):
        assert len(read(path, offset)[0]) == 1


def test_the_first_record_of_an_epoch_wins_also_after_a_restart(tmp_path):
    path = tmp_path / "spool.jsonl"
    with Spool(path) as spool:
        spool.append("start")
        assert spool.append("epoch", epoch=0, metrics={"a": 1.0}, time=111)
    with Spool(path) as spool:
        spool.append("start")
        assert not spool.append("epoch", epoch=0, metrics={"a": 2.0}, time=222)
        assert not spool.append("epoch", epoch=0, metrics={"a": 2.0}, time=333)
        assert spool.append("epoch", epoch=1, metrics={"a": 3.0})
    records, _ = read(path)
    assert [record["time"] for record in records if record["kind"] == "epoch"][0] == 111
    assert [record["attempt"] for record in records if record["kind"] == "start"] == [1, 2]


def test_an_end_followed_by_a_start_is_void():
    start, killed, finished = (
        {"kind": "start", "time": 1},
        {"kind": "end", "status": "KILLED"},
        {"kind": "end"},
    )
    epochs = [{"kind": "epoch", "epoch": epoch} for epoch in (1, 0)]
    assert digest([start, killed]).end == killed
    assert digest([start, killed, start]).end is None
    seen = digest([start, *epochs, killed, start, finished])
    assert (seen.attempts, seen.started, seen.last_epoch, seen.end) == (2, 1, 1, finished)
    assert digest([]).last_epoch is None


def test_a_spool_in_use_is_refused_with_its_owner(tmp_path):
    path = tmp_path / "spool.jsonl"
    with Spool(path) as spool:
        spool.append("start")
        with pytest.raises(SpoolBusy, match=f"process {os.getpid()} "):
            Spool(path, wait=0)
    Spool(path, wait=0).close()


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_no_torn_record(tmp_path):
    path = tmp_path / "spool.jsonl"
    child = multiprocessing.get_context("fork").Process(target=fill_the_disk, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == 0
    with Spool(path) as spool:  # space was freed
        spool.append("epoch", epoch=99, metrics={})
    assert epochs_in(path) == [0, 99]


def fill_the_disk(path):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Spool(path) as spool:
        spool.append("epoch", epoch=0, metrics={})
        size = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, size + 30))
        try:
            spool.append("epoch", epoch=1, metrics={})
        except OSError as error:
            assert error.filename == str(path)
        else:
            raise AssertionError("a record was written to a full disk")
    assert path.stat().st_size == size


WRITER = """
import sys
from fanin.spool import Spool
spool = Spool(sys.argv[1])
spool.append("start")
for epoch in range(int(sys.argv[2]), 10**9):
    if spool.append("epoch", epoch=epoch, metrics={"val/loss": epoch / 7, "pad" * 100: 1.0}):
        print(epoch, flush=True)
"""


def test_kill_9_at_any_moment_loses_no_record_that_was_acknowledged(tmp_path):
    path, acknowledged = tmp_path / "spool.jsonl", -1
    for round_ in range(4):
        restart_at = max(0, acknowledged - 2)  # as from a checkpoint two epochs old
        command = [sys.executable, "-c", WRITER, str(path), str(restart_at)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            child.stdout.readline()
            time.sleep(0.003 * round_)
            child.send_signal(signal.SIGKILL)
            lines = child.stdout.read().split()
        acknowledged = max([acknowledged, *map(int, lines)])
        stored = epochs_in(path)
        assert stored == list(range(len(stored)))  # each once, none missing
        assert stored[-1] >= acknowledged
    assert digest(read(path)[0]).attempts == 4
    Spool(path, wait=0).close()  # the dead writer's lock is gone
