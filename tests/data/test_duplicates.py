import numpy as np
from etils import epath
from fake_trees.images import photograph

from medinit_jax.data.builders.divisions import divide
from medinit_jax.data.duplicates import alike, difference_hash, divide_groups, identical


def test_hash_bits_by_hand():
    ramp = np.arange(17, dtype=np.uint8) * 10
    rising = np.repeat(np.tile(ramp, (16, 1))[..., None], 3, axis=-1)
    assert np.bitwise_count(difference_hash(rising)).sum() == 0
    assert np.bitwise_count(difference_hash(rising[:, ::-1])).sum() == 256
    one = rising.copy()
    one[3, 4] = 55
    # 55 > 50 in one place of 16 x 16; 30 > 55 remains false.
    assert np.bitwise_count(difference_hash(one)).sum() == 1


def test_hash_of_photographs():
    large = photograph("one", 340, 320)["image"]
    brighter = np.clip(large.astype(int) + 4, 0, 255).astype(np.uint8)
    other = photograph("two", 340, 320)["image"]
    one, near, far = (difference_hash(image) for image in (large, brighter, other))
    assert np.bitwise_count(one ^ near).sum() <= 2 < np.bitwise_count(one ^ far).sum()


def test_chains_are_one_group():
    hashes = np.zeros((5, 4), np.uint64)
    # 0 - 2 - 4 in steps of two bits; 1 is three bits from 0; 3 is the same as 1.
    hashes[2, 0], hashes[4, 0] = 0b11, 0b1111
    hashes[1, 3] = hashes[3, 3] = 0b111
    assert alike(hashes) == [[0, 2, 4], [1, 3]]
    assert alike(hashes, distance=0) == [[0], [1, 3], [2], [4]]
    assert alike(np.zeros((0, 4), np.uint64)) == []


def test_alike_as_pairs_one_by_one():
    rng = np.random.default_rng(0)
    # Few bits, so that many are near each other.
    hashes = rng.integers(0, 2**9, (60, 4), dtype=np.uint64)
    hashes[:, 1:] = 0
    near = [[bin(int(a ^ b)).count("1") <= 1 for b in hashes[:, 0]] for a in hashes[:, 0]]
    reach = np.array(near)
    for _ in range(6):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    expected = sorted({tuple(np.flatnonzero(row).tolist()) for row in reach})
    groups = alike(hashes, distance=1)
    assert sorted(map(tuple, groups)) == expected and 1 < len(groups) < 60


def test_groups_stay_whole_and_numbers_exact():
    groups = [["a", "b", "c"], *([f"s{i}"] for i in range(20)), ["d", "e"]]
    sides = set()
    for seed in range(30):
        train, rest = divide_groups(groups, 20, seed)
        assert len(train) == 20 and len(rest) == 5 and len(set(train) | set(rest)) == 25
        for group in (["a", "b", "c"], ["d", "e"]):
            assert set(group) <= set(train) or set(group) <= set(rest)
        sides.add(("a" in train, "d" in train))
    assert len(sides) > 1
    single = [[f"s{i}"] for i in range(20)]
    assert divide_groups(single, 16, 3) == divide([f"s{i}" for i in range(20)], 16, 3)


def test_identical_files(tmp_path):
    contents = {"d": b"one", "a": b"two", "c": b"one", "b": b"longer", "e": b"two", "f": b"six"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = {name: epath.Path(tmp_path / name) for name in contents}
    assert identical(files) == [["a", "e"], ["c", "d"]]
    assert identical({}) == []
