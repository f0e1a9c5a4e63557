import os
import shutil
import subprocess
import sys
import textwrap

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from processes import begin, free_port, needs_gloo, outcome

from medinit_jax.core import listing
from medinit_jax.core import state as state_lib
from medinit_jax.core.checkpoint import Checkpoints, open_checkpoints
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parallel import Parallel


def make_tree(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "half": jnp.asarray(rng.normal(size=(3, 5)), jnp.bfloat16),
        "single": jnp.asarray([np.nan, -0.0, np.inf, 1e-45], jnp.float32),
        "double": rng.normal(size=4),
        "count": jnp.int32(7),
        "long": np.int64([2**62 + seed]),
        "key": jax.random.key_data(jax.random.key(seed)),
        "flag": jnp.array([True, False]),
        "nested": {"empty": {}, "list": [jnp.zeros((2, 1)), jnp.ones(())]},
    }


def bits(tree):
    return [
        (np.dtype(leaf.dtype).name, leaf.shape, np.asarray(leaf).tobytes())
        for leaf in jax.tree.leaves(tree)
    ]


@pytest.fixture
def checkpoints(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints", keep=2)
    yield made
    made.close()


def test_every_dtype_comes_back_bit_for_bit(checkpoints):
    tree = make_tree(3)
    checkpoints.save(5, tree, {"next": 2**60, "list": [1, 2]}, {"config": {"rate": 0.1}})
    restored = checkpoints.restore(make_tree(4))
    assert bits(restored.state) == bits(tree)
    assert jax.tree.structure(restored.state) == jax.tree.structure(tree)
    assert restored.step == 5
    assert restored.iterator == {"next": 2**60, "list": [1, 2]}
    assert restored.extra == {"config": {"rate": 0.1}}


def test_float64_on_the_device_comes_back_bit_for_bit(checkpoints):
    with jax.enable_x64(True):
        tree = {"x": jnp.arange(3, dtype=jnp.float64) / 3}
        checkpoints.save(1, tree)
        restored = checkpoints.restore({"x": jnp.zeros(3, jnp.float64)}).state
        assert bits(restored) == bits(tree)


def test_a_train_state_comes_back_as_one(checkpoints):
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = state_lib.create({"w": jnp.ones((2, 3))}, optimizer)
    state, _ = state_lib.apply_gradients(state, {"w": jnp.full((2, 3), 0.5)}, optimizer)
    checkpoints.save(1, state)
    restored = checkpoints.restore(state_lib.create({"w": jnp.zeros((2, 3))}, optimizer)).state
    assert isinstance(restored, state_lib.TrainState)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert bits(restored) == bits(state)


def test_the_newest_are_kept_and_each_can_be_asked_for(checkpoints):
    for step in (1, 2, 3):
        checkpoints.save(step, {"x": jnp.int32(step)})
    assert checkpoints.steps() == [2, 3]
    template = {"x": jnp.int32(0)}
    assert int(checkpoints.restore(template).state["x"]) == 3
    assert int(checkpoints.restore(template, 2).state["x"]) == 2
    with pytest.raises(UsageError, match="no checkpoint of step 1 .*steps 2, 3"):
        checkpoints.restore(template, 1)


def test_nothing_saved_is_said(checkpoints):
    with pytest.raises(UsageError, match=r"checkpoints has no checkpoint \(it has none\)"):
        checkpoints.restore({"x": jnp.int32(0)})


@pytest.mark.parametrize("workers", [0, 1])
def test_the_position_of_a_grain_iterator(checkpoints, workers):
    def make():
        dataset = grain.MapDataset.range(20).shuffle(seed=1).to_iter_dataset()
        if workers:
            dataset = grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2)
        return iter(dataset)

    iterator = make()
    for _ in range(7):
        next(iterator)
    checkpoints.save(7, {"x": jnp.int32(0)}, iterator.get_state())
    expected = [next(iterator) for _ in range(13)]
    again = make()
    again.set_state(checkpoints.restore({"x": jnp.int32(0)}).iterator)
    assert [next(again) for _ in range(13)] == expected


def test_an_iterator_state_of_bytes(checkpoints):
    checkpoints.save(1, {"x": jnp.int32(0)}, b'{"last": 3}')
    assert checkpoints.restore({"x": jnp.int32(0)}).iterator == b'{"last": 3}'


def test_saved_on_four_devices_and_restored_on_one(checkpoints):
    mesh = Mesh(np.array(jax.devices()[:4]), "data")
    spread = jax.device_put(
        jnp.arange(8, dtype=jnp.float32), NamedSharding(mesh, PartitionSpec("data"))
    )
    checkpoints.save(1, {"x": spread})
    restored = checkpoints.restore({"x": jnp.zeros(8)}).state["x"]
    assert len(restored.sharding.device_set) == 1
    np.testing.assert_array_equal(restored, np.arange(8))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((4, True), (4, False)),
        ((4, False), (2, True)),
        ((4, True), (2, True)),
        ((2, True), (1, True)),
    ],
    ids=str,
)
def test_moments_divided_among_any_devices_come_back_divided_among_others(tmp_path, before, after):
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=n), jnp.float32) for k, n in (("w", (3, 8)), ("b", 5))}
    held = state_lib.create(params, optax.adam(0.1))
    moments = jax.tree.map(lambda x: x + 1, held.opt_state)
    held = held.replace(opt_state=moments)

    def placed(state, devices, sharded):
        return state_lib.place(state, Parallel(jax.devices()[:devices]), sharded)

    checkpoints = Checkpoints(tmp_path / "checkpoints", verify=True)
    checkpoints.save(1, placed(held, *before))
    template = placed(jax.tree.map(jnp.zeros_like, held), *after)
    restored = checkpoints.restore(template).state
    checkpoints.close()
    assert bits(restored) == bits(held)
    for found, wanted in zip(*map(jax.tree.leaves, (restored, template)), strict=True):
        assert found.sharding.is_equivalent_to(wanted.sharding, found.ndim)
    part = restored.opt_state[0].mu["w"].addressable_shards[0].data
    assert part.shape == (3, 8 // after[0] if after[1] else 8)


DIVIDED = """
    import sys
    import jax, numpy as np, optax
    from medinit_jax.core import state
    from medinit_jax.core.checkpoint import Checkpoints
    from medinit_jax.core.membership import Cluster, joined
    from medinit_jax.core.parallel import Parallel

    # Optax multiplies counts of another type.
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    with joined(Cluster("", sys.argv[1], 2, int(sys.argv[2]), 60)):
        parallel, optimizer = Parallel(), optax.adam(0.1)
        params = {"w": np.ones((3, 8), np.float32), "b": np.ones(5, np.float32)}
        held = state.place(state.create(params, optimizer), parallel, True)
        divide = state.divider(parallel, True)
        update = jax.jit(
            lambda s: state.apply_gradients(s, s.params, optimizer, None, divide)[0],
            out_shardings=state.places(parallel, True), donate_argnums=0,
        )
        for _ in range(2):
            held = update(held)
        checkpoints = Checkpoints(sys.argv[3], verify=True)
        checkpoints.save(2, held)
        found = checkpoints.restore(held).state
        assert state.place(found, parallel, True).opt_state[0].nu["w"] is found.opt_state[0].nu["w"]
        for moments in (held, found):
            parts = moments.opt_state[0].mu["w"].addressable_shards
            assert [part.data.shape for part in parts] == [(3, 2)] * 2
        checkpoints.close()
"""


@needs_gloo
def test_moments_divided_among_processes_are_written_by_both(tmp_path):
    place = f"127.0.0.1:{free_port()}"
    found = outcome([begin(DIVIDED, [place, rank, tmp_path / "two"]) for rank in range(2)])
    assert [code for code, *_ in found] == [0, 0], found
    optimizer = optax.adam(0.1)
    params = {"w": jnp.ones((3, 8)), "b": jnp.ones(5)}
    start = state_lib.create(params, optimizer)
    update = jax.jit(lambda s: state_lib.apply_gradients(s, s.params, optimizer)[0])
    with jax.numpy_dtype_promotion("standard"):
        wanted = update(update(start))
    checkpoints = Checkpoints(tmp_path / "two")
    restored = checkpoints.restore(start).state
    checkpoints.close()
    for a, b in zip(*map(jax.tree.leaves, (restored, wanted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_every_file_that_is_harmed_is_found_and_named(tmp_path, caplog, harm):
    whole = Checkpoints(tmp_path / "whole")
    whole.save(10, make_tree(), {"next": 1})
    whole.save(20, make_tree(), {"next": 2})
    whole.close()
    files = sorted(p.relative_to(whole.folder) for p in (whole.folder / "20").rglob("*"))
    files = [name for name in files if (whole.folder / name).is_file()]
    assert any("manifest" in name.name for name in files) and len(files) > 6
    for name in files:
        folder = tmp_path / "harmed"
        shutil.copytree(whole.folder, folder)
        path, content = folder / name, (folder / name).read_bytes()
        if harm == "truncate":
            path.write_bytes(content[: len(content) // 2])
        elif harm == "flip":
            path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        else:
            path.unlink()
        heard = []
        harmed = Checkpoints(folder, tell=heard.append)
        if harm == "remove" and name.name == "files.json":
            # Only the listing is missing, as when the process ended just before it was written.
            assert bits(harmed.restore(make_tree(1)).state) == bits(make_tree())
        else:
            with pytest.raises(UsageError) as caught:
                harmed.restore(make_tree(1), 20)
            message = str(caught.value)
            inner = str(name.relative_to("20"))
            assert inner in message and str(folder / "20") in message and "\n" not in message
            assert "remove the folder" in message and "go on from step 10" in message
            restored = harmed.restore(make_tree(1))
            assert restored.step == 10 and bits(restored.state) == bits(make_tree())
            (sentence,) = heard
            assert inner in sentence and str(folder / "20.damaged") in sentence
            assert sentence.endswith("goes on from step 10.") and harmed.steps() == [10]
            harmed.save(20, make_tree(2))
            assert bits(harmed.restore(make_tree(1)).state) == bits(make_tree(2))
        harmed.close()
        shutil.rmtree(folder)


def test_without_the_listing_what_orbax_finds_is_still_one_sentence(checkpoints):
    checkpoints.save(1, make_tree())
    checkpoints.wait()
    place = checkpoints.folder / "1"
    (place / "files.json").unlink()
    metadata = place / "state" / "_METADATA"
    metadata.write_bytes(metadata.read_bytes()[:50])
    with pytest.raises(UsageError, match="is damaged .*go on from the start"):
        checkpoints.restore(make_tree())


def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before(tmp_path):
    script = """
        import os, signal, sys
        import jax.numpy as jnp
        from medinit_jax.core import checkpoint

        made = checkpoint.Checkpoints(sys.argv[1])
        made.save(1, {"x": jnp.int32(1)})

        class Deadly(dict):
            def items(self):
                os.kill(os.getpid(), signal.SIGKILL)

        made.save(2, {"x": jnp.int32(2)}, Deadly(b=1))
        made.wait()
    """
    folder = tmp_path / "checkpoints"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(folder)], check=False)
    assert done.returncode == -9
    assert any(path.name.startswith("2") for path in folder.iterdir()), "killed before the save"
    heard = []
    checkpoints = Checkpoints(folder, tell=heard.append)
    assert checkpoints.steps() == [1] and len(os.listdir(folder)) == 2 and not heard
    checkpoints.tidy()
    assert checkpoints.steps() == [1] and sorted(os.listdir(folder)) == ["1"]
    (sentence,) = heard
    assert "was cut off" in sentence and "newest whole one is of step 1" in sentence
    assert int(checkpoints.restore({"x": jnp.int32(0)}).state["x"]) == 1
    checkpoints.save(2, {"x": jnp.int32(3)})
    assert int(checkpoints.restore({"x": jnp.int32(0)}).state["x"]) == 3
    checkpoints.close()


class NoRoom:
    """Makes the first commits fail as on a full disk."""

    def __init__(self, checkpoints, times, error):
        self.times, self.error, self.commit = times, error, checkpoints._manager.save
        checkpoints._manager.save = self

    def __call__(self, step, args):
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return self.commit(step, args=args)


FULL = (OSError(28, "No space left on device"), ValueError("Failed [os_error_code='28'] [x"))


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_older_checkpoints_make_room_for_the_new_one(tmp_path, error):
    heard = []
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3, tell=heard.append)
    for step in (1, 2, 3):
        checkpoints.save(step, make_tree(step))
    checkpoints.wait()
    NoRoom(checkpoints, 1, error)
    checkpoints.save(4, make_tree(4))
    assert checkpoints.steps() == [3, 4]
    assert bits(checkpoints.restore(make_tree()).state) == bits(make_tree(4))
    assert heard == [f"There is no room for checkpoint 4 in {checkpoints.folder}: removed 1, 2."]
    checkpoints.close()


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_ends_in_a_sentence_and_the_last_checkpoint_is_whole(tmp_path, error):
    checkpoints = Checkpoints(tmp_path / "checkpoints", tell=lambda sentence: None)
    for step in (1, 2):
        checkpoints.save(step, make_tree(step))
    checkpoints.wait()
    NoRoom(checkpoints, 2, error)
    checkpoints.save(3, make_tree(3))
    with pytest.raises(UsageError, match=r"checkpoints/3 could not be written \(No space left"):
        checkpoints.wait()
    assert sorted(os.listdir(checkpoints.folder)) == ["2"]
    assert bits(checkpoints.restore(make_tree()).state) == bits(make_tree(2))
    checkpoints.save(3, make_tree(3))
    assert bits(checkpoints.restore(make_tree()).state) == bits(make_tree(3))
    checkpoints.close()


def test_a_disk_that_is_full_for_the_listing_alone(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3, tell=lambda sentence: None)
    write, errors = listing.write_listing, [FULL[0]]

    def listed(place):
        if errors:
            raise errors.pop()
        write(place)

    checkpoints.save(1, make_tree(1))
    checkpoints.save(2, make_tree(2))
    checkpoints.wait()
    monkeypatch.setattr(listing, "write_listing", listed)
    checkpoints.save(3, make_tree(3))
    assert checkpoints.steps() == [2, 3] and (checkpoints.folder / "3" / "files.json").exists()
    assert bits(checkpoints.restore(make_tree()).state) == bits(make_tree(3))
    checkpoints.close()


def test_a_step_that_is_there_stays(checkpoints):
    checkpoints.save(1, make_tree(1))
    checkpoints.save(1, make_tree(2))
    assert bits(checkpoints.restore(make_tree()).state) == bits(make_tree(1))


def test_a_defect_while_saving_is_no_full_disk(checkpoints):
    NoRoom(checkpoints, 1, ValueError("something else"))
    checkpoints.save(1, make_tree())
    with pytest.raises(ValueError, match="something else"):
        checkpoints.close()


def test_a_state_that_changes_after_it_was_saved_does_not_change_the_checkpoint(checkpoints):
    state = {"x": np.zeros(1000)}
    checkpoints.save(1, state)
    state["x"] += 1
    assert not np.asarray(checkpoints.restore({"x": np.ones(1000)}, 1).state["x"]).any()


def test_as_the_configuration_says(tmp_path):
    train = {"checkpoints_kept": 1, "checkpoints_verified": True}
    checkpoints = open_checkpoints(tmp_path, train)
    for step in (1, 2):
        checkpoints.save(step, make_tree(step))
    assert checkpoints.steps() == [2] and checkpoints.folder == tmp_path / "checkpoints"
    checkpoints.close()
    with pytest.raises(UsageError, match="config.train.checkpoints_kept=0 leaves none"):
        open_checkpoints(tmp_path, train | {"checkpoints_kept": 0})


def test_read_back_at_once(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "checkpoints", verify=True)
    checkpoints.save(1, make_tree(1))
    checkpoints.wait()
    monkeypatch.setattr(checkpoints, "_restore", lambda step, template: make_tree(5))
    checkpoints.save(2, make_tree(2))
    with pytest.raises(UsageError, match="it is not what was written"):
        checkpoints.wait()
    checkpoints.close()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ({"a": {"w": jnp.zeros((2, 4))}}, "a/w is float32[2, 3] there and float32[2, 4] here"),
        (
            {"a": {"w": jnp.zeros((2, 3), jnp.bfloat16)}},
            "a/w is float32[2, 3] there and bfloat16[2, 3] here",
        ),
        ({"a": {"v": jnp.zeros((2, 3))}}, "a/w is float32[2, 3] there and absent here"),
    ],
)
def test_a_state_that_does_not_fit_is_named(checkpoints, template, words):
    checkpoints.save(1, {"a": {"w": jnp.zeros((2, 3))}})
    with pytest.raises(UsageError) as caught:
        checkpoints.restore(template)
    assert words in str(caught.value) and "does not fit" in str(caught.value)
