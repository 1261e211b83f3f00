"""The only writer of MLflow: a tracking store in the words of this package, and what can go wrong with it.

MLflow is imported and connected at the first use, by whoever ships; nothing here is on the training path.
What is sent when, and why twice does no harm, is in shipping.py.
"""

from fanin.tracking.address import resolve, sqlite_file, without_secrets
from fanin.tracking.faults import TrackingDown, TrackingForgot, TrackingRefused
from fanin.tracking.tracker import TrackedRun, Tracker

__all__ = [
    "TrackedRun",
    "Tracker",
    "TrackingDown",
    "TrackingForgot",
    "TrackingRefused",
    "resolve",
    "sqlite_file",
    "without_secrets",
]
