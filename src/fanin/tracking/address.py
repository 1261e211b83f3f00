"""Where a tracking store is: its URI in full, and in messages without the passwords that it may hold."""

import os
import re
from pathlib import Path

from fanin.errors import ConfigError, require

CREDENTIALS = re.compile(r"//[^/\s]*@")  # user:password@ of an address
SECRETS = re.compile(r"([?&])[a-z]*password=[^&\s'\"]*", re.IGNORECASE)  # and those that a driver takes after its ?


def resolve(uri: str | None, *, project: Path) -> str:
    """The URI in full: `uri`, $MLFLOW_TRACKING_URI or the default; SQLite paths relative to the project."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, shown = uri.split("://")[0], without_secrets(uri)
    if scheme == "postgresql":
        raise ConfigError(
            f"MLFLOW_TRACKING_URI: a URI must name its driver, as in 'postgresql+psycopg://...', got {shown!r}"
        )
    known = scheme in ("http", "https", "sqlite") or scheme.startswith(("postgresql+", "mysql+", "mssql+"))
    require(known, "MLFLOW_TRACKING_URI", "must be a sqlite:///, http(s):// or postgresql+psycopg:// URI", shown)
    rule = "must name a file after three slashes, sqlite:///mlflow.db"
    require(scheme != "sqlite" or len(uri) > 10 and uri[9] == "/", "MLFLOW_TRACKING_URI", rule, shown)
    require(scheme[:4] != "http" or uri.split("://")[1], "MLFLOW_TRACKING_URI", "must name a server", shown)
    database = sqlite_file(uri)
    return uri if database is None else f"sqlite:///{project / database}"


def sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def without_secrets(text: str) -> str:
    """A text that holds addresses, a command for one, without the passwords that these may hold."""
    return SECRETS.sub(r"\1password=...", CREDENTIALS.sub("//", text))
