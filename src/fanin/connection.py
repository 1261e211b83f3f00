"""Connections to an MLflow server on which no answer waits 40 ms for nothing.

`mlflow server` runs several processes by default, and hands them a socket that asyncio does not know for TCP, so that
it leaves Nagle's algorithm on (uvicorn 0.54). The head of an answer then leaves at once, and its body when the head has
been acknowledged, which our kernel puts off by 40 ms in the hope of sending data along: each of a run's seven requests
took 45 ms longer than its work. Acknowledging at once costs one system call a request. Where the system has no such
option (it is Linux's), connections stay as they are.
"""

import socket
from types import ModuleType
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

QUICK = getattr(socket, "TCP_QUICKACK", None)


def hasten(requests: ModuleType) -> None:
    """Have every connection made from now on by MLflow's module of requests acknowledge at once."""
    usual = getattr(requests, "TCPKeepAliveHTTPAdapter", None)
    if usual is None or QUICK is None or issubclass(usual, Hasty):
        return

    class HastyAdapter(Hasty, usual):  # type: ignore[misc, valid-type]
        pass

    requests.TCPKeepAliveHTTPAdapter = HastyAdapter  # type: ignore[attr-defined]


class Hasty:
    """An adapter of `requests` whose connections acknowledge at once."""

    poolmanager: Any

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)  # type: ignore[misc]
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}


def _acknowledge(connection: HTTPConnection) -> None:
    """Before each answer: the kernel goes back to waiting by itself."""
    if QUICK is not None and connection.sock is not None:
        connection.sock.setsockopt(socket.IPPROTO_TCP, QUICK, 1)


class _Connection(HTTPConnection):
    def getresponse(self) -> Any:
        _acknowledge(self)
        return super().getresponse()


class _SecureConnection(HTTPSConnection):
    def getresponse(self) -> Any:
        _acknowledge(self)
        return super().getresponse()


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection
