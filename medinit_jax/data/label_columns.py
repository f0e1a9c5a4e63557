"""The columns of a table that hold labels: numbers or text, made classes, with rows named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from etils import epath

from medinit_jax.data.layout import Tree
from medinit_jax.data.tables import Row

UNLABELLED = -1
# More classes than that are no classes, but numbers of patients or images.
MAX_CLASSES = 1000
# What stands for "not known"; "none" is none of them, because it may be a finding.
BLANK = frozenset({"", "nan", "na", "n/a", "<na>", "#n/a", "null"})


class Label(NamedTuple):
    """One label of all images.

    Attributes:
        name: Its column, or the finding.
        classes: Names of the classes.
        numbers: Class of every row, -1: unlabelled.
    """

    name: str
    classes: tuple[str, ...]
    numbers: list[int]


class LabelReading:
    """Reads the labels of a table."""

    def __init__(self, tree: Tree, path: epath.Path, rows: list[Row], classes: tuple[str, ...]):
        """Takes rows as `read_table` returns them, their cells under `key_of(column)`.

        Args:
            tree: The dataset, for messages.
            path: The table, for messages.
            rows: All rows.
            classes: Names of classes or findings in their order; empty: those of the table.
        """
        self.tree, self.path, self.rows, self.wanted = tree, path, rows, classes

    def labels(self, columns: Sequence[str], separator: str) -> list[Label]:
        """Returns one label per column, or per finding where a separator stands between findings.

        Raises:
            DatasetLayoutError: E_LABEL_RANGE with the number of the row, or E_COLUMNS.
        """
        if not separator:
            return [self._column(column) for column in columns]
        if len(columns) != 1:
            self.tree.fail(
                "E_COLUMNS",
                "a separator of findings needs one label column",
                path=self.path,
                found=columns,
                expected="one column of labels",
                fix="Name one column, or no separator.",
            )
        return self._findings(columns[0], separator)

    def _findings(self, column: str, separator: str) -> list[Label]:
        cells = [
            None
            if is_blank(row[key_of(column)])
            else [
                part for part in map(text_of, text_of(row[key_of(column)]).split(separator)) if part
            ]
            for row in self.rows
        ]
        pairs = [(place, part) for place, cell in enumerate(cells) for part in cell or ()]
        findings = self.wanted or self._distinct(column, pairs)
        for place, part in pairs:
            if part not in findings:
                self._refuse(place, column, f"findings among {', '.join(findings)}")
        return [
            Label(
                finding,
                ("0", "1"),
                [UNLABELLED if cell is None else int(finding in cell) for cell in cells],
            )
            for finding in findings
        ]

    def _column(self, column: str) -> Label:
        texts = [_whole(plain(row[key_of(column)])) for row in self.rows]
        texts = ["" if text == str(UNLABELLED) else text for text in texts]
        known = [place for place, text in enumerate(texts) if text]
        numeric = [place for place in known if not math.isnan(_number(texts[place]))]
        self._refuse_nothing(column, known)
        if self.wanted:
            names = self.wanted
            for place in known:
                if texts[place] not in names:
                    self._refuse(place, column, f"one of {', '.join(names)}, or blank")
        elif len(numeric) == len(known):
            for place in numeric:
                value = _number(texts[place])
                if not value.is_integer() or not 0 <= value < MAX_CLASSES:
                    self._refuse(place, column, f"a whole number from 0 to {MAX_CLASSES - 1}")
            names = tuple(str(i) for i in range(1 + max(int(texts[place]) for place in known)))
        else:
            if numeric:
                rare = set(known) - set(numeric)
                rare = rare if 2 * len(rare) <= len(known) else set(numeric)
                self._refuse(min(rare), column, "numbers alone or text alone")
            names = self._distinct(column, [(place, texts[place]) for place in known])
        number_of = {"": UNLABELLED, **{name: number for number, name in enumerate(names)}}
        return Label(column, names, [number_of[text] for text in texts])

    def _distinct(self, column: str, texts: Sequence[tuple[int, str]]) -> tuple[str, ...]:
        """Returns the different texts, sorted."""
        self._refuse_nothing(column, texts)
        spelled: dict[str, str] = {}
        for place, text in texts:
            usual = spelled.setdefault(text.casefold(), text)
            if usual != text:
                self._refuse(place, column, f"one spelling of {usual!r}")
            if len(spelled) > MAX_CLASSES:
                self._refuse(place, column, f"at most {MAX_CLASSES} classes")
        return tuple(sorted(spelled.values()))

    def _refuse_nothing(self, column: str, known: Sequence[Any]) -> None:
        if not known:
            self.tree.fail(
                "E_LABEL_RANGE",
                f"no row has a label in {column}",
                path=self.path,
                expected="a label in some rows",
                fix="Do not name this column as labels, or fill it.",
            )

    def _refuse(self, place: int, column: str, expected: str) -> NoReturn:
        refuse(self.tree, self.path, self.rows[place], column, expected)


def refuse(tree: Tree, path: epath.Path, row: Row, column: str, expected: str) -> NoReturn:
    """Raises E_LABEL_RANGE for a cell."""
    cell = row[key_of(column)]
    tree.fail(
        "E_LABEL_RANGE",
        f"row {row['row']} has {column} {str(cell)[:100]!r}",
        path=path,
        found=[repr(cell)],
        expected=expected,
        fix="Correct this row of the table, or name another column.",
    )


def key_of(column: str) -> str:
    """Returns the name of a column's value in a row, which no other entry of a row has."""
    return f"column {column}"


def text_of(cell: Any) -> str:
    """Returns a cell as text, a whole number without a fraction."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return " ".join(str(cell).split())


def plain(cell: Any) -> str:
    """Returns a cell as text, "" for what is not known."""
    return "" if is_blank(cell) else text_of(cell)


def is_blank(cell: Any) -> bool:
    """Says whether a cell is blank, NaN or a word for that."""
    return text_of(cell).casefold() in BLANK


def _whole(text: str) -> str:
    """Returns "1" for "1.0", as tables with blanks are often written; other text as it is."""
    value = _number(text)
    return str(int(value)) if value.is_integer() else text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
