"""Label tables as they are distributed: CSV, XLSX and XLS, with the headers people give them."""

from __future__ import annotations

import codecs
import csv
import io
import logging
import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from medinit_jax.data.layout import Tree, normal, pointer_kind

Row = dict[str, Any]

MAX_BYTES = 1 << 29
MAX_ROWS = 10_000_000
# Longest line of a CSV file; a label table has some hundred characters a line.
MAX_LINE = 1_000_000
# Excel's own limit. A single stray cell at the end of a sheet makes as many blank rows.
MAX_SHEET_ROWS = 1 << 20
MAX_SHEET_CELLS = 20_000_000
# What an .xlsx file may become unpacked, and the ratio that a part of some size may have: text of
# real sheets becomes 5 to 40 times smaller, zip bombs become 1000 times smaller.
MAX_UNPACKED = 1 << 28
MAX_RATIO = 100
_SMALL_PART = 5_000_000
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class _Refused(Exception):
    """A table is not read; the message is the reason."""


def read_table(
    tree: Tree,
    path: Any,
    columns: Mapping[str, Sequence[str]],
    optional: Mapping[str, Sequence[str]] | None = None,
    delimiter: str | None = ",",
    fix: str = "Name a column of the table so, or restore the original table.",
) -> list[Row]:
    """Reads the columns that are needed.

    Headers are compared without case and surrounding blanks, where none is exactly as wanted;
    columns without a header and rows without any value are left out. Text is stripped. Sheets other
    than the first are not read. CSV files may be UTF-8, UTF-16 or UTF-32; what is none of them is
    read as Latin-1, which is logged. A row of a CSV file must reach all columns that are read, and
    have no value without a header: a delimiter inside a value shifts all that follows. With
    `delimiter` None it must have no cell without one either.

    Args:
        tree: The dataset, for messages.
        path: A .csv, .xlsx or .xls file.
        columns: {name in the result: accepted headers}; all are needed.
        optional: The same for columns that may be absent; absent is "".
        delimiter: Between the fields of a CSV file; None: the one of ",;|" and tab that the first
            line has most of.
        fix: What to do where a column is missing.

    Returns:
        One dict per row, in order, with `row` the number that a spreadsheet would show.

    Raises:
        DatasetLayoutError: E_DECODE, E_LFS or E_COLUMNS.
    """
    rows = _rows(tree, path, delimiter)
    header = ["" if cell is None else str(cell).strip() for cell in next(rows, ())]
    normals = [normal(one) for one in header]
    wanted = {**columns, **(optional or {})}
    places: dict[str, int] = {}
    for name, aliases in wanted.items():
        known = next(
            (found for alias in aliases if (found := _columns(header, normals, alias))), []
        )
        if len(known) > 1:
            tree.fail(
                "E_COLUMNS",
                f"{len(known)} columns may be {' or '.join(aliases)}",
                path=path,
                found=[header[place] for place in known],
                expected="one",
                fix="Write the header exactly as in the table, or rename one of them there.",
            )
        if known:
            places[name] = known[0]
        elif name in columns:
            tree.fail(
                "E_COLUMNS",
                f"no column is named {' or '.join(aliases)}",
                path=path,
                found=[one for one in header if one],
                expected=" or ".join(aliases),
                fix=fix,
            )
    # Spreadsheets end a row with its last value, and may hold notes beside the table.
    text = path.name.lower().rpartition(".")[2] not in ("xlsx", "xls")
    table = []
    for number, cells in enumerate(rows, start=2):
        if _is_blank(cells if text else cells[: len(header)], text):
            continue
        if text and len(cells) != len(header):
            _check_length(tree, path, number, cells, header, places, delimiter is None)
        row: Row = {"row": number}
        for name in wanted:
            place = places.get(name, len(cells))
            cell = cells[place] if place < len(cells) else ""
            row[name] = "" if cell is None else cell.strip() if isinstance(cell, str) else cell
        table.append(row)
    return table


def _columns(header: Sequence[str], normals: Sequence[str], wanted: str) -> list[int]:
    """Returns the places of a header: those written exactly so, else those of other case."""
    exact = [place for place, one in enumerate(header) if one == wanted.strip()]
    near = normal(wanted)
    return exact or [place for place, one in enumerate(normals) if one == near]


def _is_blank(cells: Sequence[Any], text: bool) -> bool:
    """Says whether cells hold nothing; those of a text at the speed that a line of commas needs."""
    if text:
        return not "".join(cells).strip()
    return all(cell is None or str(cell).strip() == "" for cell in cells)


def _check_length(
    tree: Tree,
    path: Any,
    number: int,
    cells: Sequence[str],
    header: Sequence[str],
    places: Mapping[str, int],
    strict: bool,
) -> None:
    """Raises E_COLUMNS if a row has a value without a header, or ends before a wanted column."""
    beyond = cells[len(header) :]
    longer = bool(beyond) if strict else not _is_blank(beyond, text=True)
    if not longer and all(place < len(cells) for place in places.values()):
        return
    tree.fail(
        "E_COLUMNS",
        f"row {number} has {len(cells)} cells, the header has {len(header)}",
        path=path,
        found=cells,
        expected="as many cells as headers",
        fix="Put quotes around a value that holds the delimiter (such as 2,5), write nothing "
        "between two delimiters for a blank, or save the table with another delimiter.",
    )


def unique_rows(tree: Tree, path: Any, table: Sequence[Row], name: str) -> dict[str, Row]:
    """Returns {what stands in the column `name`: row}; rows that say the same count once.

    Raises:
        DatasetLayoutError: E_LABEL_RANGE: a name is blank, or two rows of one name differ.
    """
    rows: dict[str, Row] = {}
    repeated = 0
    for row in table:
        key = str(row[name])
        known = rows.setdefault(key, row)
        repeated += known is not row
        differ = {**known, "row": 0} != {**row, "row": 0}
        if not key or differ:
            tree.fail(
                "E_LABEL_RANGE",
                f"rows {known['row']} and {row['row']} say different things of {key}"
                if differ
                else f"row {row['row']} has no {name}",
                path=path,
                found=[str({key: value for key, value in row.items() if key != "row"})],
                expected=f"one row for each {name}",
                fix="Restore the original table, or delete the wrong row.",
            )
    if repeated:
        logging.warning("%s: repeated rows are counted once: %d.", path, repeated)
    return rows


def integer(tree: Tree, path: Any, row: Row, name: str, allowed: Sequence[int]) -> int:
    """Returns a whole number of a row.

    Raises:
        DatasetLayoutError: E_LABEL_RANGE: blank, text, a fraction, or not one of `allowed`.
    """
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    if value not in allowed:
        tree.fail(
            "E_LABEL_RANGE",
            f"row {row['row']} has {name} {row[name]!r}",
            path=path,
            found=[repr(row[name])],
            expected=f"one of {', '.join(map(str, allowed))}",
            fix="Put the original value back, or delete the row and prepare with --any-count.",
        )
    return int(value)


def _rows(tree: Tree, path: Any, delimiter: str | None) -> Iterator[Sequence[Any]]:
    suffix = path.name.lower().rpartition(".")[2]
    path = epath.Path(path)
    size = path.stat().length
    content = b"" if size > MAX_BYTES else path.read_bytes()
    kind = pointer_kind(content[:200])
    if kind:
        tree.fail(
            "E_LFS",
            f"{path.name} is {kind}",
            path=path,
            found=[f"{len(content)} bytes"],
            expected="a table",
            fix="Download the file again, signed in, or run `git lfs pull`.",
        )
    try:
        if size > MAX_BYTES:
            raise _Refused(f"it is larger than {MAX_BYTES >> 20} MiB")
        if suffix == "xlsx":
            yield from _xlsx(content)
        elif suffix == "xls":
            yield from _xls(content)
        else:
            yield from _csv(path.name, content, delimiter)
    except Exception as error:
        # What a damaged table raises depends on the reader and on the damage: it can be anything.
        reason = " ".join(str(error).split())[:300]
        if not isinstance(error, _Refused):
            reason = f"{type(error).__name__}: {reason}"
        tree.fail(
            "E_DECODE",
            f"{path.name} cannot be read ({reason})",
            path=path,
            found=[f"{size} bytes"],
            expected=f"a table in the format {suffix}",
            fix="Download the file again.",
        )


def _csv(name: str, content: bytes, delimiter: str | None) -> Iterator[Sequence[str]]:
    stream = io.TextIOWrapper(io.BytesIO(content), _encoding(name, content), newline="")
    lines = _lines(stream)
    if delimiter is None:
        start = stream.readline(MAX_LINE)
        stream.seek(0)
        delimiter = max(",;\t|", key=start.count)
    for number, cells in enumerate(csv.reader(lines, delimiter=delimiter, strict=True)):
        if number > MAX_ROWS:
            raise _Refused(f"it has more than {MAX_ROWS} rows")
        yield cells


def _lines(stream: io.TextIOBase) -> Iterator[str]:
    for number, line in enumerate(stream, start=1):
        if len(line) > MAX_LINE:
            raise _Refused(f"line {number} has {len(line)} characters")
        if "\0" in line:
            raise _Refused(f"line {number} holds a NUL character, which no text does")
        yield line


def _encoding(name: str, content: bytes) -> str:
    for mark, encoding in _BOMS:
        if content.startswith(mark):
            return encoding
    start = content[:10_000]
    for place, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        # In UTF-16 every other byte of an English text is zero.
        if start[place::2].count(0) > 0.4 * len(start) and not start[1 - place :: 2].count(0):
            return encoding
    try:
        codecs.utf_8_decode(content, "strict", True)
    except UnicodeDecodeError as error:
        logging.warning("%s is no UTF-8 from byte %d on: read as Latin-1.", name, error.start)
        return "latin-1"
    return "utf-8"


def _xlsx(content: bytes) -> list[Sequence[Any]]:
    # Takes a third of the time in which a process that prepares images starts.
    import openpyxl

    _refuse_bomb(content)
    rows, cells = [], 0
    with warnings.catch_warnings():
        # They are about styles and other things that are not read.
        warnings.filterwarnings("ignore", module=r"openpyxl\.")
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        if not book.worksheets:
            raise _Refused("it has no sheet")
        sheet: Any = book.worksheets[0]
        # What a sheet says of its size is often wrong, and would cut rows off.
        sheet.reset_dimensions()
        for row in sheet.iter_rows(values_only=True):
            cells += len(row)
            if len(rows) >= MAX_SHEET_ROWS or cells > MAX_SHEET_CELLS:
                raise _Refused(f"it has more than {len(rows)} rows or {MAX_SHEET_CELLS} cells")
            rows.append(row)
    return rows


def _refuse_bomb(content: bytes) -> None:
    """Reads what an archive declares; zipfile unpacks no more than that."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
    total = sum(member.file_size for member in members)
    if total > MAX_UNPACKED:
        raise _Refused(f"unpacked it has {total >> 20} MiB, more than {MAX_UNPACKED >> 20}")
    for member in members:
        most = MAX_RATIO * max(1, member.compress_size)
        if member.file_size > _SMALL_PART and member.file_size > most:
            raise _Refused(f"{member.filename} is packed more than {MAX_RATIO} times")


def _xls(content: bytes) -> Iterator[Sequence[Any]]:
    import xlrd

    book = xlrd.open_workbook(file_contents=content, logfile=io.StringIO())
    sheet = book.sheet_by_index(0)
    for number in range(sheet.nrows):
        # An error such as #N/A is stored as a number.
        yield [
            xlrd.error_text_from_code.get(int(cell.value), "#ERROR")
            if cell.ctype == xlrd.XL_CELL_ERROR
            else cell.value
            for cell in sheet.row(number)
        ]
