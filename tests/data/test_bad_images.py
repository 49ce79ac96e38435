"""Pictures that are broken, too large, missing or outside their folder; which formats are accepted, with what pixels."""
from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile import FILES, ITEMS, PICTURES, ROWS, assert_says, catch, folder_of, read
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from dyme_core.data import datasets, pictures
from dyme_core.data.schema import DataError, Record

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def stored(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims to be this large, in a few bytes."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def record_of(image: Image.Image | bytes | Path) -> Record:
    return Record("chart-7", "How many?", "3", "lookup", "own", "train", image)


WHOLE = {kind: stored(NOISE, kind) for kind in pictures.FORMATS}
BROKEN = {
    **{f"{kind} cut at {share:.0%}": whole[: int(len(whole) * share)] for kind, whole in WHOLE.items()
       for share in (0.01, 0.25, 0.5, 0.9)},
    "zero bytes": b"", "one byte": b"\x89", "NUL bytes": b"\0" * 500, "text": b"no picture", "HTML": b"<html>404</html>",
    "PDF": b"%PDF-1.7\n%\xe2\xe3", "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "ZIP": b"PK\x03\x04" + b"\0" * 60,
    "pickle": b"\x80\x04\x95", "EPS": stored(NOISE, "EPS"), "PPM": stored(NOISE, "PPM"), "ICO": stored(NOISE, "ICO"),
    "GIF of no size": b"GIF89a" + struct.pack("<HH", 0, 0) + b"\0\0\0;", "PNG of no size": png_of(0, 5),
    "1 x 1": stored(NOISE.resize((1, 1)), "PNG"), "1 x 50": stored(NOISE.resize((1, 50)), "PNG"),
    "50 x 1": stored(NOISE.resize((50, 1)), "GIF"), "20,000 x 20,000": png_of(20_000, 20_000), "20,000 x 2": png_of(20_000, 2),
    "a side too long": png_of(10_001, 30), "8,000 x 8,000": png_of(8_000, 8_000), "a bomb": png_of(60_000, 60_000),
    "a text bomb": WHOLE["PNG"][:33] + b"\0\x10\0\0zTXt" + WHOLE["PNG"][33:], "32 bits": stored(NOISE.convert("I"), "TIFF"),
    "floats": stored(NOISE.convert("F"), "TIFF")}


@pytest.mark.promise("bad input", "a picture that is cut off, no picture, a bomb, too large or too small is refused by its row")
@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("place", ["bytes", "file"])
def test_what_is_no_sound_picture_is_refused_with_its_row(fault: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(BROKEN[fault])
    record = record_of(BROKEN[fault] if place == "bytes" else tmp_path / "7.png")
    error = catch(record.load_image, DataError)
    assert_says(error, "item 'chart-7'")
    assert "7.png" in str(error) or place == "bytes" or "size" in str(error)


@pytest.mark.parametrize("path", ["gone.png", "folder", "loop", "dangling", "a\0b", "x" * 300], ids=repr)
def test_a_path_without_a_file_is_refused_with_its_row(path: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    assert_says(catch(record_of(tmp_path / path).load_image, DataError), "item 'chart-7'")


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("its pixels were unpacked"))
    for fault in ("20,000 x 20,000", "20,000 x 2", "8,000 x 8,000", "a bomb"):
        assert "size (" in str(catch(record_of(BROKEN[fault]).load_image, DataError)).lower().replace("image size", "size")


@seed(0)
@settings(max_examples=300, deadline=None, database=None)
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
       st.integers(1, 20_000))
def test_damaged_bytes_give_a_picture_or_the_documented_error(kind: str, flips: list[tuple[int, int]], length: int) -> None:
    content = bytearray(WHOLE[kind])
    for place, value in flips:
        content[place % len(content)] = value
    try:
        assert record_of(bytes(content[:length])).load_image().mode == "RGB"
    except DataError as error:
        assert "item 'chart-7'" in str(error)


# --- Variants that are taken ---------------------------------------------------------------------------------------------

RED, GREEN, WHITE = (255, 0, 0), (0, 170, 0), (255, 255, 255)


def half_transparent(mode: str) -> Image.Image:
    """Left red, right transparent black."""
    image = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    image.paste((*RED, 255), (0, 0, 10, 10))
    return image.convert(mode)


def palette() -> bytes:
    image = Image.new("P", (20, 10), 0)
    image.putpalette([0, 0, 0, *RED])
    image.paste(1, (0, 0, 10, 10))
    return stored(image, "PNG", transparency=0)


def colour_key() -> bytes:
    image = Image.new("RGB", (20, 10), (1, 2, 3))
    image.paste(RED, (0, 0, 10, 10))
    return stored(image, "PNG", transparency=(1, 2, 3))


def frames(kind: str) -> bytes:
    red, green = Image.new("RGB", (20, 10), RED), Image.new("RGB", (20, 10), GREEN)
    return stored(red, kind, save_all=True, append_images=[green, green], **({"lossless": True} if kind == "WEBP" else {}))


def turned() -> bytes:
    """Red on the left as people see it; stored lying, with the note that it must be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return stored(Image.merge("RGB", half_transparent("RGBA").split()[:3]).rotate(90, expand=True), "PNG", exif=exif)


PLAIN_RED = stored(Image.new("RGB", (20, 10), RED), "PNG")
LARGE = b"x" * (2 * pictures.MAX_METADATA)
METADATA = {"a large text": chunk(b"zTXt", b"k\0\0" + zlib.compress(LARGE)), "a plain text": chunk(b"tEXt", b"k\0" + LARGE),
            "a large XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LARGE)),
            "a large profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(LARGE)), "many texts": b"".join(
                chunk(b"zTXt", b"k\0\0" + zlib.compress(LARGE[: 2**20])) for _ in range(70)),
            "a text bomb of one": chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 10**8))}


def with_metadata(name: str, place: int = 33) -> bytes:
    return PLAIN_RED[:place] + METADATA[name] + PLAIN_RED[place:]


GREY16 = Image.fromarray((np.arange(200).reshape(10, 20) * 256 + 255).astype(np.uint16))
TAKEN: dict[str, tuple[bytes, tuple, tuple]] = {  # its bytes, the colour at the left edge and at the right
    "alpha": (stored(half_transparent("RGBA"), "PNG"), RED, WHITE), "alpha WebP": (
        stored(half_transparent("RGBA"), "WEBP", lossless=True), RED, WHITE),
    "grey and alpha": (stored(half_transparent("LA"), "PNG"), (76, 76, 76), WHITE), "palette": (palette(), RED, WHITE),
    "colour key": (colour_key(), RED, WHITE), "opaque alpha": (
        stored(Image.new("RGBA", (20, 10), (*RED, 255)), "PNG"), RED, RED),
    "CMYK": (stored(Image.new("CMYK", (20, 10), (0, 255, 255, 0)), "TIFF"), RED, RED),
    "16 bits": (stored(GREY16, "PNG"), (100, 100, 100), (119, 119, 119)), "16 bits TIFF": (
        stored(GREY16, "TIFF"), (100, 100, 100), (119, 119, 119)),
    "one bit": (stored(Image.new("1", (20, 10), 1), "PNG"), WHITE, WHITE),
    "grey": (stored(Image.new("L", (20, 10), 9), "PNG"), (9, 9, 9), (9, 9, 9)),
    **{f"animated {kind}": (frames(kind), RED, RED) for kind in ("GIF", "PNG", "WEBP", "TIFF")},
    **{name: (with_metadata(name), RED, RED) for name in METADATA},
    "a text behind the pixels": (with_metadata("a large text", len(PLAIN_RED) - 12), RED, RED),
    **{f"EXIF that is none in {kind}": (stored(Image.new("RGB", (20, 10), RED), kind, exif=b"Exif\0\0XX", lossless=True), RED,
                                        RED) for kind in ("PNG", "WEBP")},
    "turned": (turned(), RED, (0, 0, 0)), "2 x 2": (stored(Image.new("RGB", (2, 2), RED), "BMP"), RED, RED)}


@pytest.mark.promise("bad input", "training and evaluation see the same pixels of pictures with alpha, 16 bits, CMYK, frames "
                                  "or a turn: 8-bit RGB on white, upright")
@pytest.mark.parametrize("variant", TAKEN)
def test_a_variant_is_seen_as_people_see_it_in_training_and_in_evaluation(variant: str, tmp_path: Path) -> None:
    content, left, right = TAKEN[variant]
    (tmp_path / "7.png").write_bytes(content)
    image = record_of(content).load_image()
    width, height = image.size
    assert image.mode == "RGB" and (width, height) == ((2, 2) if variant == "2 x 2" else (20, 10))
    assert (image.getpixel((0, height // 2)), image.getpixel((width - 1, height // 2))) == (left, right)
    same = [record_of(tmp_path / "7.png"), record_of(content)]
    if variant not in {*METADATA, "a text behind the pixels"}:  # Pillow itself does not open these
        same.append(record_of(Image.open(tmp_path / "7.png")))
    assert {record.load_image().tobytes() for record in same} == {image.tobytes()}
    trained = datasets.to_dataset(same)
    assert [row["image"].tobytes() for row in trained] == [image.tobytes()] * len(same)
    assert {row["image"].mode for row in trained} == {"RGB"}


# --- Pictures that a row names -------------------------------------------------------------------------------------------


def outside(folder: Path) -> dict[str, object]:
    """Values of a picture's field that lead out of its folder, or to no file."""
    secret = folder.parent / "secret.png"
    NOISE.save(secret)
    (folder / "link.png").symlink_to(secret)
    (folder / "up").symlink_to(folder.parent)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "dir.png").mkdir()
    return {"up": "../secret.png", "up in the middle": "a/../../secret.png", "absolute": str(secret),
            "backslashes": "..\\secret.png", "a drive": "C:\\secret.png", "a link": "link.png", "a folder's link":
            "up/secret.png", "a loop": "loop.png", "a pipe": "pipe.png", "a folder": "dir.png", "gone": "gone.png",
            "home": "~/secret.png", "an address": "http://127.0.0.1:1/x.png", "a file address": f"file:{secret}",
            "NUL": "1.png\0.txt", "a line": "1\n.png", "a colour": "\x1b[31m1.png", "a long name": "x" * 5000, "a shell":
            "$(touch owned).png", "half": "\ud800.png", "empty": "", "blank": " ", "null": None, "number": 5, "truth": True,
            "list": ["1.png"], "object": {}, "object without bytes": {"bytes": "x", "path": None}, "no path": {"path": 3}}


NAMED = {"own": "image", "slake": "img_name", "geo170k": "image", "mathverse": "image"}
PATHS = ("up", "up in the middle", "absolute", "backslashes", "a drive", "a link", "a folder's link", "a loop", "a pipe",
         "a folder", "gone", "home", "an address", "a file address", "NUL", "a line", "a colour", "a long name", "a shell",
         "half", "empty", "blank", "null", "number", "truth", "list", "object", "object without bytes", "no path")


@pytest.mark.promise("security", "no row reads a file outside the folder of its pictures, by path or by link")
@pytest.mark.parametrize("label", PATHS)
@pytest.mark.parametrize("name", NAMED)
def test_a_picture_outside_its_folder_or_of_no_file_is_refused(name: str, label: str, tmp_path: Path) -> None:
    folder = folder_of(name, [], tmp_path / "data")
    value = outside(folder / PICTURES[name])[label]
    if (name, label) == ("own", "null"):
        pytest.skip("your own row without a picture is a question of text alone")
    (folder / FILES[name]).write_text(json.dumps(ROWS[name] | {NAMED[name]: value}))
    error = catch(lambda: read(name, folder), DataError)
    assert_says(error, ITEMS[name])
    assert not list(tmp_path.rglob("owned"))


def test_pictures_of_a_hub_snapshot_are_links_into_its_own_store(tmp_path: Path) -> None:
    """As the hub's client lays it out: snapshots/REVISION/NAME links to ../../blobs/HASH of the same repository."""
    for name in ("datasets--me--charts", "datasets--other--charts"):
        (tmp_path / name / "blobs").mkdir(parents=True)
        NOISE.save(tmp_path / name / "blobs" / "f00d", "PNG")
    folder = folder_of("own", [ROWS["own"]], tmp_path / "datasets--me--charts" / "snapshots" / "abc")
    picture = folder / PICTURES["own"] / ROWS["own"]["image"]
    picture.unlink()
    picture.symlink_to("../../blobs/f00d")
    assert read("own", folder)[0].load_image().size == NOISE.size
    picture.unlink()
    picture.symlink_to("../../../datasets--other--charts/blobs/f00d")
    assert_says(catch(lambda: read("own", folder), DataError), "a link that leads out of it")


def test_a_folder_that_is_itself_a_link_is_no_way_out(tmp_path: Path) -> None:
    folder_of("own", [ROWS["own"]], tmp_path / "real")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert read("own", tmp_path / "linked")[0].load_image().size == (20, 10)


@pytest.mark.parametrize("make",
                         [datasets.to_dataset, lambda records: datasets.sft_dataset(records, lambda rows: ["t"] * len(rows))])
def test_a_broken_picture_never_reaches_a_data_set(make: Callable, tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(BROKEN["EPS"])
    assert_says(catch(lambda: make([record_of(tmp_path / "7.png")]), DataError), "item 'chart-7'")
