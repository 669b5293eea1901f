"""``convnn export``: the command."""

from __future__ import annotations

from .program import export
from .settings import ExportSettings


def run_export(settings: ExportSettings) -> None:
    """Export a checkpoint, a line for every step."""
    exported = export(
        settings.checkpoint,
        settings.path,
        format=settings.format,
        image_size=settings.image_size,
        batch_size=settings.batch_size or "dynamic",
        opset=settings.opset,
        verify=settings.verify,
        log=print,
    )
    print(f"Wrote {exported}")
