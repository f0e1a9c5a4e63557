import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.data.augment import Augmentation
from medinit_jax.data.decode import DecodeError
from medinit_jax.data.pipeline import BatchOptions, BatchSource
from medinit_jax.data.readable import DamagedRecord, Readable, raw_record
from medinit_jax.data.sources import ArraySource
from medinit_jax.data.tasks import make_builder
from medinit_jax.finetune.examples import Records

COUNT = 3000


def reader(*broken):
    def read(number):
        if number in broken:
            raise DecodeError(f"item {number} is no image")
        return 10 * number

    return Readable(read, COUNT)


def test_the_next_one_that_is_whole_takes_the_place(capsys):
    readable = reader(4, 5, COUNT - 1)
    assert readable.find(3) == (3, 30)
    assert readable.find(4) == (6, 60) and readable.find(5) == (6, 60)
    assert readable.find(COUNT - 1) == (0, 0)
    assert readable.find(4) == (6, 60)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"Image {number} cannot be read any more and is left out ({count} of at most 3): item "
        f"{number} is no image"
        for count, number in enumerate((4, 5, COUNT - 1), 1)
    ]
    assert sorted(readable.damaged) == [4, 5, COUNT - 1]


def test_one_in_a_thousand_is_the_most():
    readable = reader(1, 2, 3, 4)
    with pytest.raises(UsageError, match="4 of 3000 images cannot be read any more.*item 4 is"):
        readable.find(1)


def test_of_one_item_none_can_be_left_out():
    def broken(number):
        raise DecodeError("no image")

    with pytest.raises(UsageError, match="1 of 1 images"):
        Readable(broken, 1).find(0)


def test_a_defect_is_no_damage():
    with pytest.raises(ZeroDivisionError):
        Readable(lambda number: 1 // number, 5).find(0)


class Damaged(ArraySource):
    def __getitem__(self, index):
        if index == 2:
            raise DamagedRecord("Record 2 is damaged.")
        return super().__getitem__(index)


def test_a_batch_holds_the_example_that_took_the_place():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 8, 8, 3), np.uint8)
    options = BatchOptions(5, 0, Augmentation(), (0.0,) * 3, (1.0,) * 3, shuffle=False)
    labels = np.arange(5)
    batch = BatchSource(Damaged(images, labels=labels), options)[0]
    whole = BatchSource(ArraySource(images, labels=labels), options)[0]
    taken = [0, 1, 3, 3, 4]
    np.testing.assert_array_equal(batch["index"], taken)
    for name in ("image", "label"):
        np.testing.assert_array_equal(batch[name], whole[name][taken])


def test_a_changed_byte_of_a_prepared_set_is_found_and_named(tmp_path):
    from rich.console import Console

    from medinit_jax.data.draw import draw_missing

    name = "phantom_idrid_32px_x0.1"
    builder = make_builder(name, str(tmp_path))
    draw_missing(builder, name, Console(quiet=True))
    (file,) = tmp_path.rglob("*train.array_record*")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    records = Records(builder, "train")
    with pytest.raises(DamagedRecord, match=r"Record \d+ of .*/train is damaged \(Corrupted"):
        records.columns(["image_id"])


def test_an_error_of_another_kind_goes_through():
    class Records(list):
        def __getitem__(self, index):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        raw_record(Records(), 0, "a set")
