"""Whether the hub of models and datasets can be asked, found out in seconds: its own client tries for half a minute per file."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PATIENCE_S = 3.0
"""How long a connection may take."""


def obstacle() -> str | None:
    """Return why the hub cannot be asked, None if it can."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE=1 is set"
    endpoint = urlsplit(constants.ENDPOINT)
    proxy = getproxies().get(endpoint.scheme)
    door = endpoint if proxy is None or proxy_bypass(endpoint.hostname or "") else urlsplit(proxy)
    flaw = _probe(door.hostname or "", door.port or (80 if door.scheme == "http" else 443))
    return flaw and f"the hub, {constants.ENDPOINT}, cannot be reached: {flaw}"


def _probe(host: str, port: int) -> str | None:
    """Return what is wrong with a connection, None if nothing is."""
    found: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=PATIENCE_S).close()
        except OSError as error:
            found.append(error.strerror or str(error))
        else:
            found.append(None)

    # Looking up a name has no time limit of its own, so it may be left behind.
    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    return found[0] if found else f"no answer within {PATIENCE_S:g} s"


@contextmanager
def cache_only() -> Iterator[None]:
    """Let the libraries of the hub, ``datasets`` included where it is loaded, read what is in their caches and ask nobody."""
    from huggingface_hub import constants

    flags: list[Any] = [constants, *([sys.modules["datasets"].config] if "datasets" in sys.modules else [])]
    before = [flag.HF_HUB_OFFLINE for flag in flags]
    for flag in flags:
        flag.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.HF_HUB_OFFLINE = value
