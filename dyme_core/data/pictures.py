"""Pictures of any origin as 8-bit RGB. Empty ones, and those too large for memory, are refused before they are decoded."""
from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")  # others run programs (EPS: Ghostscript) or hold no pixels
MIN_SIDE, MAX_SIDE, MAX_PIXELS = 2, 10_000, 50_000_000  # trackers and failed downloads leave pictures of 1 x 1
# What Pillow's readers raise on damaged files; a broken PNG is a SyntaxError to it.
FAULTS = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError,
          struct.error, zlib.error, Image.DecompressionBombError)

MAX_METADATA = 2**20  # bytes of a PNG's texts and colour profile, unpacked: Pillow refuses a picture with more
_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
          8: Image.Transpose.ROTATE_90}  # EXIF's orientations

Source = Image.Image | Path | bytes


class PictureError(ValueError):
    """A picture that is refused; `args` are what was expected, what came, what to do."""


def read_rgb(source: Source) -> Image.Image:
    """The picture as people see it: 8-bit RGB, upright (EXIF), the first frame of several, what is transparent on white.

    Pictures of 16 bits per channel lose the lower 8. Colour profiles, and EXIF data that cannot be read, are ignored.

    Raises:
        PictureError: for what is damaged, of another format than FORMATS, has a side below MIN_SIDE or above MAX_SIDE, more
            than MAX_PIXELS, or 32 bits a pixel.
    """
    image, _ = _opened(source)
    try:
        image.load()
        turn = _TURNS.get(_orientation(image))
        found = _rgb(image if turn is None else image.transpose(turn))
    except FAULTS as error:
        raise _unreadable(source, error) from error
    found.info = {}  # no turn, text or profile is written with it
    return found


def digest(image: Image.Image) -> bytes:
    """SHA-256 of a picture's size and pixels."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()


def is_plain(source: Path | bytes) -> bool:
    """True where a plain conversion to RGB by Pillow gives the pixels of `read_rgb`.

    Raises:
        PictureError: as `read_rgb`, as far as the file's header shows it.
    """
    image, is_whole = _opened(source)
    try:
        is_upright = is_whole and _orientation(image) is None
        return is_upright and _depth(image) == 8 and (not image.has_transparency_data or _is_opaque(image.convert("RGBA")))
    except FAULTS as error:
        raise _unreadable(source, error) from error


def _opened(source: Source) -> tuple[Image.Image, bool]:
    """The picture, and whether its file is as it was: of a PNG's metadata at most MAX_METADATA is kept."""
    is_whole = True
    try:
        if not isinstance(source, Image.Image):
            file, is_whole = _without_heavy_metadata(source)
            image = Image.open(file, formats=FORMATS)
        else:
            image = source
    except FAULTS as error:
        raise _unreadable(source, error) from error
    width, height = image.size
    if not MIN_SIDE <= min(width, height) <= max(width, height) <= MAX_SIDE or width * height > MAX_PIXELS:
        raise PictureError(f"a picture with sides of {MIN_SIDE} to {MAX_SIDE} pixels, {MAX_PIXELS // 10**6} million in all",
                           f"size {image.size}", "shrink it, restore it or remove the row")
    return image, is_whole


def _without_heavy_metadata(source: Path | bytes) -> tuple[Path | BinaryIO, bool]:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        heavy = _heavy_chunks(file)
    if not heavy:
        return io.BytesIO(source) if isinstance(source, bytes) else source, True
    content = memoryview(source if isinstance(source, bytes) else source.read_bytes())
    starts, ends = zip(*heavy, strict=True)
    return io.BytesIO(b"".join(content[start:end] for start, end in zip((0, *ends), (*starts, None), strict=True))), False


def _heavy_chunks(file: BinaryIO) -> list[tuple[int, int]]:
    """Where a PNG's texts and profiles beyond MAX_METADATA start and end; none in other files."""
    heavy, room, start = [], MAX_METADATA, 8
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return []
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        end = start + 12 + length  # length, name, content, checksum
        if name in _METADATA:
            size = _unpacked_size(name, file.read(length))
            if size > room:
                heavy.append((start, end))
            else:
                room -= size
        start = file.seek(end)
    return heavy


def _unpacked_size(name: bytes, chunk: bytes) -> int:
    _, _, packed = chunk.partition(b"\0")  # behind the keyword: method, data; in iTXt flag, method, two more texts, data
    if name == b"iTXt":
        packed = b"\0" + packed[2:].split(b"\0", 2)[-1] if packed[:1] == b"\1" else b""
    try:
        return max(len(chunk), len(zlib.decompressobj().decompress(packed[1:], MAX_METADATA + 1)))
    except zlib.error:
        return len(chunk)


def _orientation(image: Image.Image) -> int | None:
    """EXIF's orientation; None without any, 1 (upright) where EXIF cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except FAULTS:
        return 1


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
