"""Label tables as they are distributed: CSV, XLSX and XLS, with the headers people give them."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import openpyxl
import xlrd

from medinit_jax.data.layout import Tree, normal, pointer_kind

Row = dict[str, Any]


def read_table(
    tree: Tree,
    path: Any,
    columns: Mapping[str, Sequence[str]],
    optional: Mapping[str, Sequence[str]] | None = None,
    delimiter: str = ",",
) -> list[Row]:
    """Reads the columns that are needed.

    Headers are compared without case and surrounding blanks; columns without a header and rows
    without any value are left out. Text is stripped. Sheets other than the first are not read.

    Args:
        tree: The dataset, for messages.
        path: A .csv, .xlsx or .xls file.
        columns: {name in the result: accepted headers}; all are needed.
        optional: The same for columns that may be absent; absent is "".
        delimiter: Between the fields of a CSV file.

    Returns:
        One dict per row, in order, with `row` the number that a spreadsheet would show.

    Raises:
        DatasetLayoutError: E_DECODE, E_LFS or E_COLUMNS.
    """
    rows = _rows(tree, path, delimiter)
    header = [normal(str(cell)) if cell is not None else "" for cell in rows[0]] if rows else []
    wanted = {**columns, **(optional or {})}
    places: dict[str, int] = {}
    for name, aliases in wanted.items():
        known = [header.index(normal(alias)) for alias in aliases if normal(alias) in header]
        if known:
            places[name] = known[0]
        elif name in columns:
            tree.fail(
                "E_COLUMNS",
                f"no column for {name}",
                path=path,
                found=[one for one in header if one],
                expected=" or ".join(aliases),
                fix="Name a column of the table so, or restore the original table.",
            )
    table = []
    for number, cells in enumerate(rows[1:], start=2):
        if all(cell is None or str(cell).strip() == "" for cell in cells):
            continue
        row: Row = {"row": number}
        for name in wanted:
            place = places.get(name, len(cells))
            cell = cells[place] if place < len(cells) else ""
            row[name] = "" if cell is None else cell.strip() if isinstance(cell, str) else cell
        table.append(row)
    return table


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


def _rows(tree: Tree, path: Any, delimiter: str) -> list[Sequence[Any]]:
    content = path.read_bytes()
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
    suffix = path.name.lower().rpartition(".")[2]
    try:
        if suffix == "xlsx":
            book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
            return list(book.worksheets[0].iter_rows(values_only=True))
        if suffix == "xls":
            sheet = xlrd.open_workbook(file_contents=content, logfile=io.StringIO()).sheet_by_index(
                0
            )
            return [sheet.row_values(number) for number in range(sheet.nrows)]
        text = content.decode("utf-8-sig")
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except Exception as error:
        # What a damaged table raises depends on the reader and on the damage: it can be anything.
        tree.fail(
            "E_DECODE",
            f"{path.name} cannot be read ({type(error).__name__}: {error})",
            path=path,
            found=[f"{len(content)} bytes"],
            expected=f"a table in the format {suffix}",
            fix="Download the file again.",
        )
