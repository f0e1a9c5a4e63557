import logging
import os
import zipfile

import openpyxl
import pytest
import xlwt
from etils import epath

from medinit_jax.data import tables
from medinit_jax.data.layout import DatasetLayoutError, Tree
from medinit_jax.data.tables import integer, read_table

COLUMNS = {"image": ["Image Name", "image"], "label": ["label"]}
TEXT = "image,label\r\nödème.png, 1 \r\n,\r\nb.png,2\r\n"
EXPECTED = [
    {"row": 2, "image": "ödème.png", "label": "1"},
    {"row": 4, "image": "b.png", "label": "2"},
]


def rows_of(path, **options):
    path = epath.Path(path)
    return read_table(Tree("set", path.parent), path, COLUMNS, **options)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"]
)
def test_encodings(encoding, tmp_path, caplog):
    path = tmp_path / "labels.csv"
    path.write_bytes(TEXT.encode(encoding))
    with caplog.at_level(logging.WARNING):
        assert rows_of(path) == EXPECTED
    assert ("labels.csv is no UTF-8" in caplog.text) == (encoding == "latin-1")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_of_the_first_line(delimiter, tmp_path):
    path = tmp_path / "labels.tsv"
    path.write_text(TEXT.replace(",", delimiter), newline="")
    assert rows_of(path, delimiter=None) == EXPECTED
    assert rows_of(path, delimiter=delimiter) == EXPECTED


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'image,label\na.png,"1\n', "unexpected end of data"),
        (b"image,label\na\0.png,1\n", "line 2 holds a NUL character"),
        (b"image,label\n" + b"x" * 1_000_001, "line 2 has 1000001 characters"),
        (b"image,label\n" + b"x" * 200_000, "field larger than field limit"),
        (b"\xff\xfei\0m\0a\0\n", "truncated data"),
    ],
)
def test_damaged_csv(content, reason, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(DatasetLayoutError, match=reason) as raised:
        rows_of(path)
    assert raised.value.code == "E_DECODE" and len(str(raised.value).splitlines()) == 4


def test_names_of_columns_in_messages_are_short_and_on_one_line(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('"a\nb","\x07c",' + "d" * 1000 + "\n1,2,3\n")
    with pytest.raises(DatasetLayoutError, match=r"found a b, \?c, d{200}\.\.\.;") as raised:
        rows_of(path)
    assert raised.value.code == "E_COLUMNS" and len(str(raised.value).splitlines()) == 4


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_headers_that_differ_in_case_only(suffix, tmp_path):
    path = tmp_path / f"labels.{suffix}"

    def written(*header):
        rows = [header, ("a.png", "1", "2")]
        if suffix == "xlsx":
            sheet(path, rows)
        else:
            path.write_text("".join(",".join(row) + "\n" for row in rows))

    for header, label in ((("image", "label", "Label"), "1"), (("image", "Label", "label"), "2")):
        written(*header)
        assert rows_of(path) == [{"row": 2, "image": "a.png", "label": label}]
    for header in (("image", "Label", "LABEL"), ("image", "label", "label")):
        written(*header)
        with pytest.raises(DatasetLayoutError, match="2 columns may be label") as raised:
            rows_of(path)
        assert raised.value.code == "E_COLUMNS" and raised.value.found == list(header[1:])


@pytest.mark.parametrize(
    ("line", "cells"), [("a.png,2,5,q0", 4), ("a.png", 1), (",,,q", 4), ("a.png,2,5,", None)]
)
def test_rows_of_another_length_than_the_header(line, cells, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(f"image,label,note\nb.png,1,\n\n{line}\nc.png,3\n")
    if cells is None:
        # Published tables may end with delimiters; nor is a note read that is not there.
        assert [row["label"] for row in rows_of(path)] == ["1", "2", "3"]
        with pytest.raises(DatasetLayoutError, match="row 4 has 4 cells"):
            rows_of(path, delimiter=None)
        return
    message = f"row 4 has {cells} cells, the header has 3"
    with pytest.raises(DatasetLayoutError, match=message) as raised:
        rows_of(path)
    assert raised.value.code == "E_COLUMNS" and "quotes" in raised.value.fix


def test_rows_of_a_spreadsheet_end_with_their_last_value(tmp_path):
    path = tmp_path / "labels.xlsx"
    sheet(path, [("image", "label"), ("a.png",), ("b.png", 1, "a note"), (None, None, "another")])
    assert [row["label"] for row in rows_of(path)] == ["", 1]


def sheet(path, rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.worksheets[0].append(row)
    book.save(path)


def rewritten(path, name, old, new):
    """Replaces text in a member of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    assert old in members[name]
    members[name] = members[name].replace(old, new)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)


def test_excel_with_a_wrong_size_and_an_error_cell(tmp_path):
    path = tmp_path / "labels.xlsx"
    sheet(path, [["Image_Name", "label"], ["a.png", 1], [None, None], ["b.png", "#N/A"]])
    rewritten(path, "xl/worksheets/sheet1.xml", b'ref="A1:B4"', b'ref="A1"')
    assert rows_of(path) == [
        {"row": 2, "image": "a.png", "label": 1},
        {"row": 4, "image": "b.png", "label": "#N/A"},
    ]


def test_old_excel_errors_are_no_numbers(tmp_path):
    book = xlwt.Workbook()
    page = book.add_sheet("labels")
    for y, row in enumerate([["image", "label"], ["a.png", 3], ["b.png", xlwt.Formula("1/0")]]):
        for x, cell in enumerate(row):
            page.write(y, x, cell)
    page.row(3).write(0, "c.png")
    page.row(3).set_cell_error(1, "#N/A!")
    book.save(str(tmp_path / "labels.xls"))
    assert [row["label"] for row in rows_of(tmp_path / "labels.xls")][::2] == [3, "#N/A"]


def test_limits(tmp_path, monkeypatch):
    path = tmp_path / "labels.xlsx"
    sheet(path, [["image", "label"], *([["a.png", 1]] * 50)])
    for name, value, reason in (
        ("MAX_SHEET_ROWS", 20, "more than 20 rows"),
        ("MAX_SHEET_CELLS", 20, "20 cells"),
        ("MAX_UNPACKED", 1000, "unpacked it has"),
        ("_SMALL_PART", 100, "is packed more than 2 times"),
        ("MAX_BYTES", 100, "it is larger than 0 MiB"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(tables, name, value)
            patch.setattr(tables, "MAX_RATIO", 2)
            with pytest.raises(DatasetLayoutError, match=reason):
                rows_of(path)
    csv = tmp_path / "labels.csv"
    csv.write_text("image,label\n" + "a.png,1\n" * 50)
    assert len(rows_of(csv)) == 50
    monkeypatch.setattr(tables, "MAX_ROWS", 20)
    with pytest.raises(DatasetLayoutError, match="more than 20 rows"):
        rows_of(csv)


def test_whole_numbers(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image,label\na,1.0\nb,2.5\nc,\n")
    tree, rows = Tree("set", tmp_path), rows_of(path)
    assert integer(tree, path, rows[0], "label", (0, 1)) == 1
    for row, value in ((rows[1], "2.5"), (rows[2], "")):
        with pytest.raises(DatasetLayoutError, match=f"row {row['row']} has label '{value}'"):
            integer(tree, path, row, "label", (0, 1))


def test_links_that_lead_out_or_around(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/a.png").write_bytes(b"x")
    root = tmp_path / "set"
    (root / "sub").mkdir(parents=True)
    (root / "sub/a.png").write_bytes(b"x")
    (root / "sub/.DS_Store").write_bytes(b"x")
    os.symlink(root / "sub/a.png", root / "inside.png")
    os.symlink(tmp_path / "secret/a.png", root / "outside.png")
    os.symlink(tmp_path / "secret", root / "sub/outside")
    os.symlink(root, root / "sub/around")
    tree = Tree("set", root)
    assert sorted(name for name, _ in tree.walk()) == ["inside.png", "sub/a.png"]
    assert len(tree.outside) == 2
    assert tree.find("outside.png") is None and tree.find("inside.png") is not None
