"""Damaged files by number, and a worker process that reads them, measured and with a deadline."""

from __future__ import annotations

import contextlib
import gc
import io
import multiprocessing
import struct
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openpyxl
import xlwt
from fake_trees.images import LFS_POINTER
from PIL import Image

DEADLINE = 5.0
MEMORY = 1 << 30
HTML = b"<!DOCTYPE html><html><body>Please sign in</body></html>"
IMAGES = ("png", "jpg", "tif", "gif", "bmp", "ppm", "webp", "jp2")
TABLES = ("csv", "xlsx", "xls")


class Outcome(NamedTuple):
    """How the reading of one file ended.

    Attributes:
        how: "read", the name of our error, or "crash", "hang", "memory" or "warning".
        detail: The message.
        megabytes: What reading took beyond what the process held before.
    """

    how: str
    detail: str
    megabytes: float


def _picture(rng: np.random.Generator) -> np.ndarray:
    height, width = rng.integers(20, 90, 2)
    return rng.integers(0, 256, (height, width, 3), np.uint8) // 64 * 64


def _image(suffix: str, rng: np.random.Generator) -> bytes:
    image: Any = Image.fromarray(_picture(rng))
    options: dict[str, Any] = {}
    modes = {"png": "RGB L P 1 I;16 RGBA", "tif": "RGB L P 1 I;16 CMYK F", "gif": "P L"}
    modes |= {"jpg": "RGB L CMYK", "bmp": "RGB L P 1", "ppm": "RGB L 1 I;16"}
    mode = rng.choice(modes.get(suffix, "RGB").split())
    image = image.convert("L").convert("I").convert(mode) if mode == "I;16" else image.convert(mode)
    if suffix == "tif" and mode != "F":
        options["compression"] = rng.choice(["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate"])
    if suffix == "jpg" and rng.random() < 0.5:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = int(rng.integers(1, 9))
        options["progressive"] = True
    if suffix == "gif":
        options |= {"save_all": True, "append_images": [image.rotate(90)]}
    names = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}
    buffer = io.BytesIO()
    image.save(buffer, names.get(suffix, suffix.upper()), **options)
    return buffer.getvalue()


def _dicom(suffix: str, rng: np.random.Generator) -> bytes:
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    syntax = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)[int(rng.integers(2))]
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3"
    dataset.Modality, dataset.PatientID = "CT", "p1"
    dataset.Rows, dataset.Columns = (int(side) for side in rng.integers(16, 64, 2))
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 1
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"
    dataset.WindowCenter, dataset.WindowWidth = "40", "80"
    shape = (dataset.Rows, dataset.Columns)
    dataset.PixelData = rng.integers(0, 2000, shape).astype(np.int16).tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _rows(rng: np.random.Generator) -> list[list[Any]]:
    words = ("none", "mild", "schwer, beidseits", "ödème", 'said "yes"', "")
    rows: list[list[Any]] = [["image", "label", "note", ""]]
    for number in range(int(rng.integers(1, 60))):
        rows.append([f"{number:03d}.png", int(rng.integers(0, 5)), rng.choice(words), ""])
    return rows


def _table(suffix: str, rng: np.random.Generator) -> bytes:
    rows, buffer = _rows(rng), io.BytesIO()
    if suffix == "csv":
        cells = [[f'"{str(cell).replace(chr(34), chr(34) * 2)}"' for cell in row] for row in rows]
        text = "\r\n".join(",".join(row) for row in cells)
        return text.encode(rng.choice(["utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le"]))
    if suffix == "xlsx":
        book = openpyxl.Workbook()
        for row in rows:
            book.worksheets[0].append([str(c) if isinstance(c, str) else c for c in row])
        book.save(buffer)
    else:
        book = xlwt.Workbook()
        sheet = book.add_sheet("labels")
        for y, row in enumerate(rows):
            for x, cell in enumerate(row):
                sheet.write(y, x, str(cell) if isinstance(cell, str) else cell)
        book.save(buffer)
    return buffer.getvalue()


def _truncated(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(1, len(content)))]


def _flipped(content: bytes, rng: np.random.Generator) -> bytes:
    array = np.frombuffer(content, np.uint8).copy()
    # Half of the time in the header, where sizes and offsets stand.
    reach = min(len(array), 200) if rng.random() < 0.5 else len(array)
    places = rng.integers(0, reach, int(rng.integers(1, 12)))
    array[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    return array.tobytes()


def _zeroed(content: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(0, len(content)))
    length = int(rng.integers(1, max(2, len(content) // 2)))
    return (content[:start] + bytes(length) + content[start + length :])[: len(content)]


def _noise(content: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(0, len(content)))
    return content[:start] + rng.bytes(int(rng.integers(1, 400))) + content[start:]


def _replaced(content: bytes, rng: np.random.Generator) -> bytes:
    return (b"", LFS_POINTER, HTML, bytes(300), b"\n")[int(rng.integers(5))]


DAMAGES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "truncated": _truncated,
    "bits flipped": _flipped,
    "zeroed": _zeroed,
    "noise inserted": _noise,
    "replaced": _replaced,
    "whole": lambda content, rng: content,
}


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def _huge_png(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    start = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
    return start + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _huge_bmp(side: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + header + bytes(900)


def _huge_tiff(side: int) -> bytes:
    tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: side, 279: side**2}
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value % (1 << 32)) for tag, value in tags.items()
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + bytes(500)


def _huge_gif(side: int) -> bytes:
    size = struct.pack("<HH", side % (1 << 16), side % (1 << 16))
    image = b"\x2c" + bytes(4) + size + b"\x00\x02\x02\x44\x01\x00\x3b"
    return b"GIF89a" + size + b"\x80\x00\x00" + bytes(6) + image


def _bomb(sheet: bytes, strings: bytes = b"<sst/>") -> bytes:
    """Returns an .xlsx file with a sheet of one's own."""
    plain, bomb = io.BytesIO(), io.BytesIO()
    openpyxl.Workbook().save(plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as to:
        for member in source.namelist():
            content = sheet if member.endswith("sheet1.xml") else source.read(member)
            to.writestr(member, strings if member.endswith("sharedStrings.xml") else content)
    return bomb.getvalue()


_SHEET = '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
_LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))


def _sheet(rows: str) -> bytes:
    return f"{_SHEET}{rows}</sheetData></worksheet>".encode()


# Files that want more than they should; each is small on disk, save those of 50 MB.
HOSTILE: dict[str, Callable[[], bytes]] = {
    "huge.png": lambda: _huge_png(60_000),
    "large.png": lambda: _huge_png(9_000),
    "huge.bmp": lambda: _huge_bmp(60_000),
    "large.bmp": lambda: _huge_bmp(9_400),
    "huge.tif": lambda: _huge_tiff(60_000),
    "large.tif": lambda: _huge_tiff(9_400),
    "full.tif": lambda: _huge_tiff(7_000),
    "huge.gif": lambda: _huge_gif(60_000),
    "full.gif": lambda: _huge_gif(7_000),
    "full.png": lambda: _huge_png(7_000),
    "strip.ppm": lambda: b"P5 100000 60 255\n" + bytes(6_000_000),
    "huge.ppm": lambda: b"P6 60000 60000 255\n" + bytes(1000),
    "full.ppm": lambda: b"P6 7000 7000 65535\n" + bytes(1000),
    "text.png": lambda: (
        _huge_png(60)[:-12] + _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))
    ),
    "rows.xlsx": lambda: _bomb(_sheet("<row/>" * 5_000_000)),
    "spaces.xlsx": lambda: _bomb(_sheet(" " * 40_000_000)),
    "string.xlsx": lambda: _bomb(
        _sheet(""), b"<sst><si><t>" + b"a" * 300_000_000 + b"</t></si></sst>"
    ),
    "last_row.xlsx": lambda: _bomb(_sheet('<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>')),
    "no_row.xlsx": lambda: _bomb(
        _sheet('<row r="2000000000"><c r="A2000000000"><v>1</v></c></row>')
    ),
    "laughs.xlsx": lambda: _bomb(
        f'<!DOCTYPE l [<!ENTITY l0 "ha">{_LAUGHS}]>'.encode()
        + _sheet('<row r="1"><c r="A1" t="inlineStr"><is><t>&l9;</t></is></c></row>')
    ),
    "line.csv": lambda: b"image,label\n" + b"a.png,1," * 6_250_000,
    "word.csv": lambda: b"image,label\n" + b"a" * 50_000_000,
    "quote.csv": lambda: b'image,label\na.png,"1\n' + b"b.png,1\n" * 1_000_000,
    "commas.csv": lambda: b"image,label\n" + (b"," * 900_000 + b"\n") * 50,
    "nul.csv": lambda: b"image,label\na.png,\x001\n",
    "zeros.csv": lambda: bytes(50_000_000),
    "utf16.csv": lambda: "image,label\na.png,1\n".encode("utf-16"),
    "utf32.csv": lambda: "image,label\na.png,1\n".encode("utf-32"),
    "latin.csv": lambda: "image,label\nödème.png,1\n".encode("latin-1"),
    "bom.csv": lambda: "\ufeffimage,label\na.png,1\n".encode(),
}


class Damaged(NamedTuple):
    """A damaged file: its name, with the reader's suffix, its content and what was done to it."""

    name: str
    content: bytes
    damage: str


def damaged(number: int, suffixes: tuple[str, ...], make: Callable[..., bytes]) -> Damaged:
    """Returns file `number`; the same number gives the same file."""
    rng = np.random.default_rng([number, 20])
    suffix = str(rng.choice(suffixes))
    damage = str(rng.choice(list(DAMAGES), p=[0.25, 0.35, 0.15, 0.13, 0.1, 0.02]))
    content = DAMAGES[damage](make(suffix, rng), rng)
    if rng.random() < 0.1:
        suffix, damage = str(rng.choice(suffixes)), f"{damage}, renamed"
    return Damaged(f"{number:05d}.{suffix}", content, damage)


def damaged_image(number: int) -> Damaged:
    """Returns a damaged image."""
    return damaged(number, IMAGES, _image)


def damaged_table(number: int) -> Damaged:
    """Returns a damaged table."""
    return damaged(number, TABLES, _table)


def damaged_dicom(number: int) -> Damaged:
    """Returns a damaged DICOM file."""
    return damaged(number, ("dcm",), _dicom)


def read(place: str) -> None:
    """Reads a file in every way that the package does."""
    from etils import epath

    from medinit_jax.core.errors import UsageError
    from medinit_jax.data.decode import DecodeError, decode, decode_mask, fit_square
    from medinit_jax.data.folder import FolderSource
    from medinit_jax.data.layout import Tree
    from medinit_jax.data.tables import read_table

    path = Path(place)
    if path.suffix[1:] in TABLES:
        tree = Tree("fuzz", epath.Path(path.parent))
        read_table(tree, epath.Path(path), {"image": ["image"]}, {"label": ["label"]}, None)
        return
    with contextlib.suppress(DecodeError):
        decode_mask(path)
    try:
        fit_square(decode(path, at_least=16), 16, "fov")
    except DecodeError:
        # One file of one is more than 0.1 %: the folder is refused, with the file in the message.
        with contextlib.suppress(UsageError):
            FolderSource(path.parent, 16)
            raise AssertionError("the folder was taken") from None
        raise
    FolderSource(path.parent, 16, check="header")


def _serve(pipe: Any) -> None:
    """Answers names of files with outcomes until the pipe is closed."""
    from medinit_jax.core.errors import UsageError
    from medinit_jax.data.decode import DecodeError

    while True:
        try:
            place = pipe.recv()
        except EOFError:
            return
        gc.collect()
        before = _reset_peak()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                read(place)
                how, detail = "read", ""
            except (UsageError, DecodeError) as error:
                how, detail = type(error).__name__, str(error)
            except BaseException:
                how, detail = "crash", traceback.format_exc()
        heard = [
            one for one in heard if not issubclass(one.category, Image.DecompressionBombWarning)
        ]
        if heard and how != "crash":
            how, detail = "warning", str(heard[0].message)
        used = _peak() - before
        if used > MEMORY:
            how, detail = "memory", f"{used} bytes"
        pipe.send(Outcome(how, detail, used / 1e6))


def _reset_peak() -> int:
    """Sets the peak of the resident memory to its present value, and returns that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


class Worker:
    """A process that reads files; one that takes too long is killed and replaced."""

    def __init__(self):
        """Starts it."""
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._fresh = True

    def read(self, place: Path) -> Outcome:
        """Returns how reading a file ended."""
        self._pipe.send(str(place))
        # The first file waits for imports.
        limit = DEADLINE + 60 * self._fresh
        self._fresh = False
        try:
            if self._pipe.poll(limit):
                return self._pipe.recv()
            how = "hang"
        except EOFError:
            how = "crash"
        self.close()
        self._start()
        return Outcome(how, "the process was killed", 0.0)

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.join()
        self._pipe.close()
