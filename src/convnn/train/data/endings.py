"""Which files are images, by the ending of their names, and which files and folders are the system's."""

from __future__ import annotations

import functools
import os

from ...errors import missing_extra

try:
    from PIL import Image, features
except ImportError as error:
    raise missing_extra("Pillow", "vision") from error

NO_IMAGES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""Formats that Pillow opens and that hold drawings, films or measurements."""
OPTIONAL = {"AVIF": "avif", "JPEG": "jpg", "JPEG2000": "jpg_2000", "WEBP": "webp"}
"""Formats that Pillow reads where it was built with a library."""
SYSTEM = frozenset(
    {"__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
    | {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
)
"""Names (in small letters) that file managers and archives leave behind."""
_TEXT = "txt csv tsv json jsonl xml yaml yml toml ini cfg conf md rst html htm css js pdf doc docx odt rtf xls xlsx log"
_REST = (
    "py ipynb sh bat m lst list names db sqlite url lnk xmp aae bib md5 sha1 sha256 ckpt pt pth pt2 safetensors onnx"
)
_PACKED = "zip tar gz tgz bz2 xz zst 7z rar"
OTHER_ENDINGS = frozenset(f".{ending}" for ending in f"{_TEXT} {_REST} {_PACKED}".split())
"""Endings of files that are clearly no images."""
_NAMES = "readme license licence copying notice authors citation changelog version manifest makefile md5sums sha256sums"
OTHER_NAMES = frozenset(_NAMES.split())
"""Names without an ending (in small letters) of files that are clearly no images."""


@functools.cache
def image_formats() -> tuple[str, ...]:
    """Return the image formats that Pillow can read here, in the order in which it tries them.

    >>> {"PNG", "JPEG", "TIFF"} <= set(image_formats()), "EPS" in image_formats()
    (True, False)
    """
    Image.init()
    missing = {name for name, library in OPTIONAL.items() if not features.check(library)}
    return tuple(name for name in Image.ID if name not in NO_IMAGES | missing)


@functools.cache
def image_endings() -> frozenset[str]:
    """Return the endings of the images that Pillow can read here, in small letters."""
    readable = {*image_formats(), *(["MPO"] if "JPEG" in image_formats() else [])}  # several JPEGs in one file
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in readable)


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is one of the system's: its name begins with a dot, or file managers write it.

    >>> [is_hidden(name) for name in ("._cat.jpg", "Thumbs.db", "__MACOSX", "cat.jpg")]
    [True, True, True, False]
    """
    return name.startswith(".") or name.casefold() in SYSTEM


def kind_of(name: str) -> str:
    """Return ``"image"``, ``"other"`` for what is clearly no image, or ``"unknown"``: by the ending alone.

    >>> [kind_of(name) for name in ("a.JPG", "labels.csv", "README", "a.heic", "00017")]
    ['image', 'other', 'other', 'unknown', 'unknown']
    """
    ending = ending_of(name)
    if ending in image_endings():
        return "image"
    clear = ending in OTHER_ENDINGS or (not ending and name.casefold() in OTHER_NAMES)
    return "other" if clear else "unknown"


def ending_of(name: str) -> str:
    """Return the ending of a file's name in small letters, with its dot.

    >>> ending_of("a.b.JPG"), ending_of("README")
    ('.jpg', '')
    """
    return os.path.splitext(name)[1].lower()
