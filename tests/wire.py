"""A network of a test's own, which can be cut as real ones are: without a word."""

import socket
import threading
import time
from contextlib import contextmanager, suppress


class Wire:
    """A TCP proxy before a port of this machine. While it is cut, it takes connections and whatever is sent, and
    nothing comes through, not even that somebody hung up; when it is mended, all of that arrives, as TCP's repetitions
    do. With a `rate` it carries so many bytes a second each way."""

    def __init__(self, port, *, rate=None):
        self._target, self._whole, self._ends = port, threading.Event(), []
        self._rate, self.carried = rate, 0  # bytes
        self._whole.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def cut(self):
        self._whole.clear()
        try:
            yield
        finally:
            self._whole.set()

    def close(self):
        self._whole.set()
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._ends.append(near)
                threading.Thread(target=self._connect, args=[near], daemon=True).start()

    def _connect(self, near):
        self._whole.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:  # nobody is there
            near.close()
            return
        self._ends.append(far)
        back = threading.Thread(target=self._carry, args=[far, near], daemon=True)
        back.start()
        self._carry(near, far)
        back.join()
        near.close()
        far.close()

    def _carry(self, source, target):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._whole.wait()
                if self._rate:
                    time.sleep(len(data) / self._rate)
                target.sendall(data)
                self.carried += len(data)
        self._whole.wait()
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def wire(port, *, rate=None):
    one = Wire(port, rate=rate)
    try:
        yield one
    finally:
        one.close()
