"""What can go wrong with a tracking store, and whether it helps to try again."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

CLOSING = "\"')"  # what ends an error within an error
REFUSALS = {
    "BAD_REQUEST",
    "CUSTOMER_UNAUTHORIZED",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "UNAUTHENTICATED",
}


class TrackingDown(RuntimeError):
    """The tracking store cannot be reached now; trying again later may work."""


class TrackingRefused(RuntimeError):
    """The tracking store answered no; trying again will not help."""


class TrackingForgot(TrackingRefused):
    """The store does not have a run or experiment that it had: it was replaced by another."""


@contextmanager
def translated(address: str) -> Iterator[None]:
    """What MLflow and the layers below it raise is raised as one of our errors, with the store's `address`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        raise _kind(error.error_code)(f"{address}: {_explain(error)}") from error
    except ImportError as error:
        raise TrackingRefused(f"{address}: its driver is not installed ({error})") from error
    except (OSError, SQLAlchemyError, sqlite3.Error) as error:
        raise TrackingDown(f"{address}: {_first_line(error)}") from error


def _kind(code: str) -> type[RuntimeError]:
    """The error for one of MLflow's codes."""
    if code == "RESOURCE_DOES_NOT_EXIST":
        return TrackingForgot
    return TrackingRefused if code in REFUSALS else TrackingDown


def _explain(error: "MlflowException") -> str:
    """What went wrong and what to do, where MLflow's words are about its requests."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or "nobody"
    if error.error_code == "UNAUTHENTICATED":
        return f"refused {user!r} (401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if error.error_code == "PERMISSION_DENIED" and "Permission denied" in str(error):
        return f"{user!r} has no right to this study (403): ask who made it for one, or choose another name"
    if "Max retries exceeded" in str(error):  # by the chain of urllib3's errors, which names the request
        return f"cannot be reached: {str(error).rpartition(': ')[2].rstrip(CLOSING)[:200]}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    """What went wrong, without SQLAlchemy's remark on when, and without the statement."""
    lines = [line for line in str(error).strip().split("\n") if not line.startswith("(raised as a result of")]
    return (lines or [type(error).__name__])[0][:300]
