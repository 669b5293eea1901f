"""Checks of the settings that say how data are read: each value alone, then what does not go together."""

from __future__ import annotations

from typing import Any

from ..._utils.settings import check_whole
from ...errors import invalid, unknown_name

RESIDENT = ("auto", "yes", "no")
BAD_IMAGES = ("stop", "skip")
NORMALIZE = ("model", "data")


def check_data_options(settings: Any) -> None:
    """Raise ConvNNError for the first of the data's options that is wrong; nothing is read."""
    for field, allowed in (("resident", RESIDENT), ("bad_images", BAD_IMAGES), ("normalize", NORMALIZE)):
        if getattr(settings, field) not in allowed:
            raise unknown_name(field, getattr(settings, field), allowed)
    for field in ("pad_crop", "cutout"):
        check_whole(field, getattr(settings, field), 0)
    if not isinstance(settings.flip, bool):
        raise invalid("flip", "true or false", repr(settings.flip), "use one of these")
    if settings.resident == "yes" and settings.augment == "strong":
        fix = "use --resident auto, or --augment light with --flip, --pad-crop and --cutout"
        raise invalid("resident", "auto or no with augment strong (which changes images one by one)", "'yes'", fix)


def check_image_size(settings: Any, size: int) -> None:
    """Raise ConvNNError for a translation or a cutout that does not fit into images of ``size`` pixels."""
    if settings.pad_crop >= size:
        got = f"{settings.pad_crop} for images of {size} x {size}"
        raise invalid("pad_crop", f"fewer pixels than the image has ({size})", got, "lower it")
    if settings.cutout > size:
        got = f"{settings.cutout} for images of {size} x {size}"
        raise invalid("cutout", f"at most the image's {size} pixels", got, "lower it")
