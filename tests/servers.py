"""Servers of a test's own: any that answers HTTP, MLflow's, and one before it that loses replies."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from recorded import wait_until


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def serving(handler):
    """A server in a thread whose requests go to `handler`, a class or a partial of one; yields its URI."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Quiet(BaseHTTPRequestHandler):
    """Writes no log to the terminal."""

    def log_message(self, *_):
        pass


@contextmanager
def mlflow_server(folder, *, port=None, workers=1):
    """A real server on a database in `folder`; yields its URI."""
    port = port or free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", str(workers), "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "server-artifacts")]
    switches = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(command, env=os.environ | switches, stdout=log, stderr=log, cwd=folder)
    try:
        wait_until(lambda: healthy(uri), seconds=120)
        yield uri
    finally:
        server.terminate()
        server.wait(30)


def healthy(uri):
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextmanager
def flaky_server(uri, *, refusal=lambda: None):
    """A proxy before a server that loses replies when told to: yields (its URI, the set of lost paths).

    A request whose path ends in one of the set is carried out, once, and its reply is thrown away. While
    `refusal` returns a status, that is the answer, and the server hears nothing.
    """
    lost: set[str] = set()
    target = uri.removeprefix("http://")

    class Relay(Quiet):
        def relay(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if status := refusal():
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            with closing(http.client.HTTPConnection(target, timeout=30)) as server:
                headers = dict(self.headers) | {"Host": target, "Connection": "close"}
                server.request(self.command, self.path, body, headers)
                answer = server.getresponse()
                content = answer.read()
            self.close_connection = True
            for ending in [ending for ending in lost if self.path.endswith(ending)]:
                lost.remove(ending)
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.getheader("Content-Type") or "")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = relay

    with serving(Relay) as address:
        yield address, lost
