"""Which architectures a step trains on, and their preparation ahead of time."""

import jax
import numpy as np
import pytest

from medinit_jax.arch.space import get_space
from medinit_jax.arch.tape import signatures
from medinit_jax.hyper.initializer import HyperInitializer
from medinit_jax.hyper.stream import ArchitectureStream, frequent_signatures

MODULE = HyperInitializer(hidden=8, max_shape=(8, 8, 5, 5))
SPACE = get_space("small")


@pytest.fixture
def stream():
    """Function (options) -> stream; all are closed at the end."""
    made = []

    def make(count=2, seed=7, **options):
        made.append(ArchitectureStream(SPACE, MODULE, count, seed, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_indices_are_a_function_of_seed_and_step(stream):
    one, other = stream(), stream()
    forward = [one.indices(step) for step in range(50)]
    assert [other.indices(step) for step in reversed(range(50))] == forward[::-1]
    assert len({i for pair in forward for i in pair}) == 100
    assert all(
        0 <= i < SPACE.size("train") and isinstance(i, int) for pair in forward for i in pair
    )
    assert [stream(seed=8).indices(step) for step in range(50)] != forward
    assert len(stream(count=5).indices(3)) == 5


def test_all_architectures_are_there_from_the_start_unless_asked(stream):
    assert stream().available(0) == SPACE.size("train") == 10**6
    large = [i for step in range(200) for i in stream().indices(step)]
    assert np.mean(large) == pytest.approx(5e5, rel=0.15)


def test_the_number_of_architectures_doubles_regularly(stream):
    growing = stream(first=8, double_every=100)
    assert [growing.available(step) for step in (0, 50, 100, 200, 1000)] == [8, 11, 16, 32, 8192]
    assert growing.available(10**9) == SPACE.size("train")
    assert {i for step in range(40) for i in growing.indices(step)} <= set(range(11))
    counts = [growing.available(step) for step in range(3000)]
    assert counts == sorted(counts)


def test_shares_divide_the_architectures_of_a_step(stream):
    whole = stream(count=4)
    parts = [stream(count=4, share=(number, 2)) for number in range(2)]
    for step in (0, 1):
        wanted = whole.indices(step)
        assert [part.indices(step) for part in parts] == [wanted, wanted]
        assert [part[step].indices for part in parts] == [wanted[0::2], wanted[1::2]]


def assert_same_meta_batch(own, expected):
    assert own.indices == expected.indices and own.programs == expected.programs
    jax.tree.map(np.testing.assert_array_equal, own.graph, expected.graph)
    for a, b in zip(own.groups, expected.groups, strict=True):
        assert (a.key, a.places) == (b.key, b.places)
        np.testing.assert_array_equal(a.rows, b.rows)


def test_prefetched_batches_are_the_prepared_ones(stream):
    one = stream(ahead=3)
    # In order, then a jump ahead and one back, as after a restored checkpoint.
    for step in (0, 1, 2, 9, 4):
        batch = one[step]
        assert batch.indices == one.indices(step)
        assert_same_meta_batch(batch, one.prepare(step))
        assert len(one._pending) <= 2 * one.ahead


def test_a_step_can_be_asked_for_again(stream):
    one = stream(ahead=1)
    assert_same_meta_batch(one[5], one[5])


def test_preparation_fails_in_the_step_that_needs_it(stream, monkeypatch):
    one = stream(ahead=0)
    monkeypatch.setattr(one, "_network", lambda index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one[0]


def test_architectures_are_named_in_the_log(stream):
    one = stream()
    first, second = one.indices(3)
    assert one.describe(3) == f"train:{first}, train:{second}"


def test_programs_are_those_of_the_space(stream):
    one = stream()
    batch = one.prepare(0)
    for index, program in zip(one.indices(0), batch.programs, strict=True):
        assert program == SPACE.program("train", index, 4)
        assert program.num_classes == 4 and program.input_shape == (32, 32, 3)


def test_the_most_frequent_signatures_come_first():
    wanted = frequent_signatures(SPACE, 4, 12)
    counts = dict.fromkeys(wanted, 0)
    for index in range(12):
        for signature in signatures(SPACE.program("train", index, 4)):
            counts[signature] += 1
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert min(counts.values()) == 1 < max(counts.values())
