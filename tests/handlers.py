"""What test workers do: handlers of a worker's tasks, light enough to be started in no time."""

import multiprocessing
import os
import signal
import time
from pathlib import Path


class Handler:
    """Does what it is told: `kind` names a method below."""

    def __init__(self, *, broken=False):
        if broken:
            raise RuntimeError("no such device")

    def __call__(self, kind, payload, channel):
        return getattr(self, kind)(payload, channel)

    def echo(self, payload, channel):
        return payload

    def say(self, payload, channel):
        for count in range(300):
            print("worker", payload, "says", count)

    def pid(self, payload, channel):
        return os.getpid()

    def die(self, payload, channel):
        """By a signal's number, or with an exit code."""
        if payload < 0:
            os.kill(os.getpid(), -payload)
            time.sleep(60)
        os._exit(payload)

    def fail(self, payload, channel):
        raise payload

    def wait_for_stop(self, payload, channel):
        """As training does: looks between two epochs."""
        channel.send("record", "begun")
        while not channel.stopped:
            time.sleep(0.01)
        return channel.stopped

    def hold_on(self, payload, channel):
        """As code of others does: never looks."""
        channel.send("record", "begun")
        try:
            with channel.interruptible():
                time.sleep(60)
        except BaseException as error:
            Path(payload).write_text(f"{type(error).__name__}: {error}")
            raise

    def sleep(self, payload, channel):
        channel.send("record", os.getpid())
        time.sleep(payload)

    def tell(self, payload, channel):
        """Two records, each answered."""
        return [channel.ask("record", number) for number in range(payload)]

    def have_a_child(self, payload, channel):
        child = multiprocessing.get_context("fork").Process(target=_nothing)
        child.start()
        child.join()
        return child.exitcode


def _nothing():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
