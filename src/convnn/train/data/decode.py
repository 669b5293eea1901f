"""From a file to an image of 8 bits a channel, as a viewer shows it; what cannot be read is named."""

from __future__ import annotations

import re
import struct
import warnings
from pathlib import Path
from typing import IO, Any

from ...errors import ConvNNError, invalid, missing_extra
from .endings import image_formats

try:
    import numpy as np
    from PIL import ExifTags, Image, UnidentifiedImageError
except ImportError as error:
    raise missing_extra(error.name or "Pillow", "vision") from error

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by the orientation in its EXIF data."""


def read_image(source: Path | IO[bytes], mode: str, *, name: str = "") -> Image.Image:
    """Return the image of a file in ``mode`` (``"RGB"`` or ``"L"``): the first, if the file holds several.

    ``name`` is what an error calls it, by default the file's name. Raises ConvNNError for whatever cannot be read.
    """
    name = name or repr(str(source))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what it reads all the same, and does not say where
            with Image.open(source, formats=image_formats()) as image:
                image.load()
                return as_mode(image, mode)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        got = f"{name} of {int(pixels[1]):,}" if pixels else f"{name} ({error})"
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow refuses at twice the number from which it warns
        raise invalid("data", f"images of at most {limit:,} pixels", got, "make it smaller, or remove it") from error
    except Exception as error:  # a decoder that meets damaged data raises errors of any type
        raise unreadable(name, error) from error


class UnreadableImageError(ConvNNError):
    """Raised for an image that cannot be read; ``reason`` says why."""

    reason = ""


def unreadable(name: str, error: Exception) -> UnreadableImageError:
    """Build the error for an image that cannot be read."""
    reason = str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "no image of a format that Pillow reads"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    fix = "replace it by a good copy, or remove it"
    made = UnreadableImageError(str(invalid("data", "images that can be read", f"{name} ({reason})", fix)))
    made.reason = reason
    return made


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return an image of any mode as ``"RGB"`` or ``"L"``, turned as its EXIF data say, transparency over white."""
    turn = TURNS.get(_orientation(image))
    image = image if turn is None else image.transpose(turn)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(eight_bits(np.asarray(image)))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    plain = image.convert(mode)
    plain.info = {}  # among it the EXIF data, by which it would be turned once more
    return plain


def _orientation(image: Image.Image) -> int:
    """Return the orientation in the EXIF data: 1, upright, where they are missing or damaged."""
    try:
        found: Any = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (ArithmeticError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return 1
    return found if isinstance(found, int) else 1


def eight_bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return pixels of more than 8 bits as 8, black to white.

    White is 65,535 for integers, 1 for real numbers of at most 1, and 255 for others. Where a value of the image is
    outside that range, its own smallest is black and its own largest white. Raises ValueError for nan and inf.

    >>> eight_bits(np.array([[0, 257, 65535]], dtype=np.uint16)).tolist()
    [[0, 1, 255]]
    """
    exact = values.astype(np.float64)
    low, high = float(exact.min()), float(exact.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels that are nan or inf")
    black, white = 0.0, 65535.0
    if values.dtype.kind == "f":
        white = 1.0 if high <= 1 else 255.0
    if low < black or high > white:
        black, white = low, high
    scaled = (exact - black) * 255 / (white - black) if white > black else np.zeros_like(exact)
    return np.rint(scaled).astype(np.uint8)
