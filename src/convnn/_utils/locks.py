"""A lock on a folder that ends with the process that holds it, however that process ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import RunError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(folder: Path, *, seconds: float = 60.0) -> Iterator[None]:
    """Hold the lock of a folder; raises RunError when another process holds it for ``seconds``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with locked(Path(folder)):
    ...         pass
    """
    if fcntl is None:
        yield
        return
    with (folder / ".lock").open("w") as file:
        until = time.monotonic() + seconds
        while not _taken(file.fileno()):
            if time.monotonic() > until:
                raise RunError(f"another process is using {folder}; wait for it, or end it")
            time.sleep(0.2)
        yield


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
