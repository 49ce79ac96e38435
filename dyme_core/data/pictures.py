"""Pictures of any origin as 8-bit RGB. Empty ones, and those too large for memory, are refused before they are decoded."""
from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")  # others run programs (EPS: Ghostscript) or hold no pixels
MIN_SIDE, MAX_SIDE, MAX_PIXELS = 2, 10_000, 50_000_000  # trackers and failed downloads leave pictures of 1 x 1
# What Pillow's readers raise on damaged files; a broken PNG is a SyntaxError to it.
FAULTS = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError,
          struct.error, zlib.error, Image.DecompressionBombError)

Source = Image.Image | Path | bytes


class PictureError(ValueError):
    """A picture that is refused; `args` are what was expected, what came, what to do."""


def read_rgb(source: Source) -> Image.Image:
    """The picture as people see it: 8-bit RGB, upright (EXIF), the first frame of several, what is transparent on white.

    Pictures of 16 bits per channel lose the lower 8; CMYK is converted without colour profiles.

    Raises:
        PictureError: for what is damaged, of another format than FORMATS, has a side below MIN_SIDE or above MAX_SIDE, more
            than MAX_PIXELS, or 32 bits a pixel.
    """
    image = _opened(source)
    try:
        return _rgb(ImageOps.exif_transpose(image))
    except FAULTS as error:
        raise _unreadable(source, error) from error


def is_plain(source: Source) -> bool:
    """True where a plain conversion to RGB gives the pixels of `read_rgb`.

    Raises:
        PictureError: as `read_rgb`, as far as the file's header shows it.
    """
    image = _opened(source)
    try:
        is_upright = ExifTags.Base.Orientation not in image.getexif()
        return is_upright and _depth(image) == 8 and (not image.has_transparency_data or _is_opaque(image.convert("RGBA")))
    except FAULTS as error:
        raise _unreadable(source, error) from error


def _opened(source: Source) -> Image.Image:
    try:
        image = source if isinstance(source, Image.Image) else Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except FAULTS as error:
        raise _unreadable(source, error) from error
    width, height = image.size
    if not MIN_SIDE <= min(width, height) <= max(width, height) <= MAX_SIDE or width * height > MAX_PIXELS:
        raise PictureError(f"a picture with sides of {MIN_SIDE} to {MAX_SIDE} pixels, {MAX_PIXELS // 10**6} million in all",
                           f"size {image.size}", "shrink it, restore it or remove the row")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if _depth(image) == 16:
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8)).convert("RGB")
    if _depth(image) == 32:
        raise ValueError("32 bits a pixel, whose range of light is not known")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    if _is_opaque(layers):
        return layers.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _depth(image: Image.Image) -> int:
    """Bits per channel."""
    return 16 if image.mode.startswith("I;16") else 32 if image.mode in ("I", "F") else 8


def _is_opaque(image: Image.Image) -> bool:
    return image.getchannel("A").getextrema() == (255, 255)


def _unreadable(source: Source, error: BaseException) -> PictureError:
    what = f"{len(source)} bytes" if isinstance(source, bytes) else source
    return PictureError("a readable picture", f"{what} ({error})", "restore the file, save it as 8-bit PNG, or remove the row")
