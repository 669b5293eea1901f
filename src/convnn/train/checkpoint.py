"""Checkpoints that survive: written whole or not at all, with a SHA-256 beside them, the one before kept.

In the folder of a run: ``last.ckpt`` to resume from, ``previous.ckpt`` before it, ``best.ckpt`` with the weights of the
best epoch, and the digests of each in ``NAME.sha256``. A file of digests is written before what it is about, and names
the old content too, so that at every moment each checkpoint matches one of its lines.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import invalid, missing_extra

try:
    from lightning.pytorch.plugins.io import TorchCheckpointIO
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all, keeps the last one before it, and reads none that was altered."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; raises OSError, with the old one intact, where there is no space."""
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getbuffer()
        new = path.with_name(path.name + ".new")
        try:
            write_durably(new, content)
            digests = (hashlib.sha256(content).hexdigest(), *recorded(path)[:2])
            write_durably(_beside(path), "".join(f"{digest}  {path.name}\n" for digest in digests).encode())
            if path.name == LAST and path.is_file():
                _keep(path, path.with_name(PREVIOUS))
            os.replace(new, path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint, executing nothing of it; raises ConvNNError for one that was altered."""
        return read_checkpoint(Path(path), map_location=map_location)


def read_checkpoint(path: Path, *, map_location: Any = "cpu") -> dict[str, Any]:
    """Return what a checkpoint holds, executing nothing of it; raises ConvNNError for one that was altered."""
    if not intact(path):
        got = f"{str(path)!r}, whose SHA-256 is another one"
        raise invalid("checkpoint", "the file that the run wrote", got, "restore it, or train again")
    checkpoint: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    return checkpoint


def checkpoint_to_resume(out: Path, say: Callable[[str], None]) -> Path | None:
    """Return the newest intact checkpoint of a run, or None for a run that has written none yet.

    ``say`` receives a line about a damaged one. Raises ConvNNError where all are damaged.
    """
    existing = [path for path in (out / LAST, out / PREVIOUS) if path.is_file()]
    for path in existing:
        if recorded(path) and intact(path):
            if path.name == PREVIOUS:
                state = "is damaged (and now called last.ckpt.damaged)" if _put_aside(out / LAST) else "is missing"
                say(f"{LAST} {state}; going on from {PREVIOUS}, the checkpoint before it")
            return path
    if existing:
        names = " and ".join(path.name for path in existing)
        got = f"{names}, which do not match their SHA-256"
        raise invalid("out", "a run with an intact checkpoint", got, "start again in another --out")
    return None


def _put_aside(path: Path) -> bool:
    """Rename a damaged checkpoint, so that it is not kept as the one before the next; False where there is none."""
    try:
        os.replace(path, path.with_name(path.name + ".damaged"))
    except FileNotFoundError:  # it is missing, or another process was faster
        return path.with_name(path.name + ".damaged").is_file()
    return True


def intact(path: Path) -> bool:
    """Return False for a file that matches none of its digests; one without digests is taken as it is."""
    known = recorded(path)
    return not known or digest_of(path) in known


def recorded(path: Path) -> list[str]:
    """Return the digests that a checkpoint may have, the newest first; empty where none were written."""
    file = _beside(path.with_name(LAST) if path.name == PREVIOUS else path)
    try:
        return [line.split()[0] for line in file.read_text(encoding="ascii").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        return []


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_durably(path: Path, content: Any) -> None:
    """Write bytes that are on the disk, whole, when this returns; the file before is not touched until then."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_leftovers(out: Path) -> None:
    """Remove what a run that was killed while it wrote has left."""
    for path in (*out.glob("*.partial"), *out.glob("*.ckpt.new")):
        path.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _keep(path: Path, kept: Path) -> None:
    """Give a file a second name in one step; where the file system has no links, move it."""
    link = kept.with_name(kept.name + ".partial")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:
        os.replace(path, kept)
    else:
        os.replace(link, kept)


def _sync_folder(folder: Path) -> None:
    """Make renames durable; Windows opens no folders, and needs none of this."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
