"""The time that an answer takes beside the work it is: no 40 ms of waiting for an acknowledgement."""

import statistics
import sys
import time

import pytest
import requests
from servers import Quiet, serving

from fanin.tracking import Tracker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the option of the socket is Linux's")
ANSWERS = 40


class Halting(Quiet):
    """Sends head and body one after the other with Nagle's algorithm on, as uvicorn's processes do."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = False

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


@pytest.fixture
def uri():
    with serving(Halting) as uri:
        yield uri


def waits(ask):
    """Seconds of the later answers on a connection that is kept: the first few are acknowledged at once."""
    times = []
    for _ in range(ANSWERS):
        began = time.perf_counter()
        ask()
        times.append(time.perf_counter() - began)
    return times[ANSWERS // 2 :]


def test_a_server_that_sends_an_answer_in_two_packets_does_not_keep_us_waiting(uri, tmp_path):
    with requests.Session() as usual:
        usually = statistics.median(waits(lambda: usual.get(uri)))
    assert usually > 0.03, "this server makes nobody wait: the test shows nothing"
    tracker = Tracker(project=tmp_path, uri=uri)
    assert min(waits(lambda: tracker.request("GET", "/"))) < 0.03, "a busy machine delays many answers, not all"
