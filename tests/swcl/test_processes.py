"""Route 2 over two processes of two devices each: it does what one process on one device does."""

import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from made_labeler import write_labeler
from made_patches import CROP, content, plan, scored
from processes import MAIN, await_that, begin, flags_of, free_port, needs_gloo, outcome, run_main
from tiny_pretrain import CONFIGS, NAME, quiet, tiny, write_patches

from medinit_jax.core.parallel import Parallel
from medinit_jax.core.parameters import load_params
from medinit_jax.core.workdir import claim_workdir
from medinit_jax.losses.supcon import supcon
from medinit_jax.swcl import FREE, patch_plan, patch_store, score
from medinit_jax.swcl.batches import ViewBatches
from medinit_jax.swcl.patch_pairs import open_pairs
from medinit_jax.swcl.pretrain import Pretraining

pytestmark = needs_gloo
IMAGES, LENGTH, STEPS = 8, 6, 20
LOSS = """
    import json, sys
    import jax, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from medinit_jax.core.membership import Cluster, joined
    from medinit_jax.core.parallel import AXIS, Parallel
    from medinit_jax.losses.supcon import gathered_supcon

    rank = int(sys.argv[2])
    given = np.load(sys.argv[3])
    with joined(Cluster("", sys.argv[1], 2, rank, 60)):
        parallel = Parallel()
        split = NamedSharding(parallel.mesh, PartitionSpec(AXIS))
        own = slice(4 * rank, 4 * rank + 4)
        loss = parallel.sharded(lambda z, y: gathered_supcon(z, y, chunk=3))
        pull = jax.jit(jax.value_and_grad(loss), out_shardings=(None, split))
        value, gradient = pull(*parallel.spread((given["z"][own], given["labels"][own])))
        parts = gradient.addressable_shards
        rows = {str(part.index[0].start): np.asarray(part.data).tolist() for part in parts}
        print(json.dumps({"value": float(value), "rows": rows}))
"""
STEP = """
    import sys
    import jax, numpy as np
    import test_step
    from medinit_jax.core import cluster
    from medinit_jax.core.membership import Cluster, joined
    from medinit_jax.core.parallel import Parallel

    rank = int(sys.argv[2])
    jax.config.update("jax_enable_x64", True)
    with joined(Cluster("", sys.argv[1], 2, rank, 60)):
        parallel, recipe = Parallel(), test_step.recipe_of("swcl")
        step = test_step.compiled(recipe, parallel)
        rows = jax.tree.map(lambda x: x[4 * rank : 4 * rank + 4], test_step.batch_of(recipe))
        state, metrics = step(test_step.state_of(recipe, parallel), *parallel.spread(rows))
        leaves = jax.tree.leaves(jax.device_get((state, metrics)))
        if cluster.first():
            np.savez(sys.argv[3], **{f"{i:03d}": leaf for i, leaf in enumerate(leaves)})
"""
STORE = """
    import sys
    from pathlib import Path
    from made_patches import CROP, plan, scored
    from medinit_jax.core.membership import Cluster, joined
    from medinit_jax.swcl import patch_plan, patch_store

    patch_plan.PART = patch_store.PART = 2
    place, rank, folder, last = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])

    def until(eyes):
        for number, found in enumerate(scored(eyes)):
            if number == last:
                (folder / f"waits{rank}").touch()
                __import__("time").sleep(100)
            yield found

    with joined(Cluster("", place, 2, rank, 60)):
        common = {"crop": CROP, "workers": 1}
        if sys.argv[5] == "prepared":
            patch_store.write_prepared(folder, "made", plan(8), until, quality=0, **common)
        else:
            patch_store.write_files(folder / "files", plan(8), until, **common)
"""


def in_two(script, *more):
    place = f"127.0.0.1:{free_port()}"
    return [begin(script, [place, rank, *more]) for rank in range(2)]


def finished(started):
    found = outcome(started)
    assert [code for code, *_ in found] == [0, 0], found
    return found


def test_the_gradient_of_the_loss_is_that_of_one(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(IMAGES, 2, LENGTH)).astype(np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    labels = rng.integers(0, 3, (IMAGES, 2)).astype(np.int32)
    np.savez(tmp_path / "given.npz", z=z, labels=labels)
    outputs = finished(in_two(LOSS, tmp_path / "given.npz"))
    found = [json.loads(out.splitlines()[-1]) for _, out, _ in outputs]
    value, gradient = jax.jit(jax.value_and_grad(supcon))(z, labels)
    rows = {int(start): part for one in found for start, part in one["rows"].items()}
    assert sorted(rows) == [0, 2, 4, 6]
    joined = np.concatenate([np.array(rows[start]) for start in sorted(rows)])
    np.testing.assert_allclose(joined, gradient, 0, 1e-6 * float(np.abs(gradient).max()))
    for one in found:
        assert one["value"] == pytest.approx(float(value), rel=1e-6)


def test_a_step_in_float64_is_that_of_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import test_step

    finished(in_two(STEP, tmp_path / "found.npz"))
    with jax.enable_x64(True):
        wanted = jax.tree.leaves(test_step.on_one_device("swcl"))
    with np.load(tmp_path / "found.npz") as held:
        test_step.agree([held[name] for name in sorted(held.files)], wanted)


def curve(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_pretraining_stopped_on_one_process_goes_on_and_equals_one_device(
    data_dir, tmp_path, tinynet
):
    """The signal reaches the second process only; both save after the same step, and go on.

    Until then each device has a part of the moments, afterwards all of them.
    """
    more = (f"--config.train.steps={STEPS}", "--config.optim.learning_rate=1e-4")
    config = tiny("swcl", data_dir, *more)
    one = tmp_path / "one"
    claim_workdir(one, config, "swcl", free=FREE)
    Pretraining(config, one, quiet(), Parallel(jax.devices()[:1])).run()

    workdir, port = tmp_path / "two", free_port()
    command = [
        f"--config={CONFIGS}/swcl.py:swcl",
        f"--config.data.data_dir={data_dir}",
        f"--config.data.patches={data_dir}/patches",
        "--config.data.size=16",
        f"--config.model.name={NAME}",
        "--config.train.batch=8",
        "--config.train.log_every=1",
        "--config.optim.warmup_epochs=0",
        f"--workdir={workdir}",
        *more,
    ]
    divided = ["--config.optim.sharded=True", "--config.train.checkpoints_verified=True"]
    started = [begin(MAIN, [*command, *divided, *flags_of(rank, port)]) for rank in range(2)]
    await_that(lambda: (workdir / "metrics.jsonl").exists() and curve(workdir), started)
    started[1].send_signal(signal.SIGTERM)
    stopped = outcome(started)
    assert [code for code, *_ in stopped] == [75, 75], stopped
    (step,) = (int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert 0 < step < STEPS and curve(workdir)[-1]["step"] == step
    assert [code for code, *_ in run_main(command)] == [0, 0]
    both = [[line["train/loss"] for line in curve(w)] for w in (one, workdir)]
    assert len(both[0]) == STEPS and len(set(both[0])) > 1
    np.testing.assert_allclose(both[1], both[0], rtol=1e-5)
    trees = [load_params(w / "model", "model")[0] for w in (one, workdir)]
    for found, wanted in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert json.loads((workdir / "summary.json").read_text())["steps"] == STEPS
    assert (workdir / "report.html").is_file()


def test_processes_load_the_rows_of_a_batch_that_are_theirs(tmp_path):
    from medinit_jax.data.views import RECIPES
    from medinit_jax.swcl.batches import Look
    from medinit_jax.swcl.patch_pairs import FilePairs

    items = FilePairs(write_patches(tmp_path / "patches", 6))
    look = Look(RECIPES["contrastive"], 16, (0.5,) * 3, (0.2,) * 3)
    whole = ViewBatches(items, look, 8, 0)[3]
    parts = [ViewBatches(items, look, 8, 0, (i, 2))[3] for i in range(2)]
    for name, rows in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), rows)


@pytest.mark.parametrize("layout", ["prepared", pytest.param("files", marks=pytest.mark.slow)])
def test_processes_share_the_parts_of_patches_and_leave_the_same_bytes(
    layout, tmp_path, monkeypatch
):
    """Both are killed while some parts are written, and two go on."""
    (tmp_path / "two").mkdir()
    started = in_two(STORE, tmp_path / "two", 5, layout)
    await_that(lambda: len(list((tmp_path / "two").glob("waits*"))) == 2, started)
    # What was scored before is still being written.
    await_that(lambda: len(list((tmp_path / "two").rglob("rows-*.json"))) == 2, started)
    for one in started:
        one.kill()
    outcome(started)
    rows = sorted(file.name for file in (tmp_path / "two").rglob("rows-*.json"))
    assert rows == ["rows-000000.json", "rows-000001.json"]
    finished(in_two(STORE, tmp_path / "two", -1, layout))
    monkeypatch.setattr(patch_plan, "PART", 2)
    monkeypatch.setattr(patch_store, "PART", 2)
    if layout == "prepared":
        patch_store.write_prepared(tmp_path / "one", "made", plan(8), scored, crop=CROP, quality=0)
    else:
        patch_store.write_files(tmp_path / "one" / "files", plan(8), scored, crop=CROP)
    for mark in (tmp_path / "two").glob("waits*"):
        mark.unlink()
    found, wanted = (content(tmp_path / name) for name in ("two", "one"))
    assert found.keys() == wanted.keys() and len(found) > 8
    for name in wanted:
        assert found[name] == wanted[name] or name.endswith("manifest.json"), name


SIDE = 64
PATCHES = """
    import sys
    from medinit_jax.main import main
    from medinit_jax.swcl import patch_plan, patch_store
    patch_plan.PART = patch_store.PART = 3
    sys.exit(main(["test", *sys.argv[1:]]))
"""


# Stands still at its fourth batch: a part of six photographs takes two of four.
HANGING = """
    import sys, time
    from pathlib import Path
    from medinit_jax.main import main
    from medinit_jax.swcl import patch_plan, patch_store, score_stream
    patch_plan.PART = patch_store.PART = 3
    padded, calls = score_stream.padded, []
    def hanging(*given):
        calls.append(given)
        if len(calls) == 4:
            Path(sys.argv[1]).touch()
            time.sleep(500)
        return padded(*given)
    score_stream.padded = hanging
    sys.exit(main(["test", *sys.argv[2:]]))
"""


def patches_command(tmp_path, share):
    """Writes a labeler, and returns the command that makes patches of some photographs with it."""
    labeler = write_labeler(tmp_path / "labeler", width=8)
    return [
        f"--config={CONFIGS}/patches.py",
        f"--config.labeler={labeler}",
        f"--config.data_dir={tmp_path}/data",
        f"--config.labelled=phantom_odir_64px_x{share}",
        "--config.unlabelled=",
        f"--config.image_size={SIDE}",
        "--config.crop=32",
        "--config.batch=4",
        "--config.workers=1",
        "--config.layout=workdir",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_patches_go_on_when_one_of_two_processes_was_killed(killed, tmp_path):
    command, mark, port = patches_command(tmp_path, 0.03), tmp_path / "hangs", free_port()
    whole, cut = ([*command, f"--workdir={tmp_path}/{name}"] for name in ("whole", "cut"))
    finished([begin(PATCHES, [*whole, *flags_of(i, port)]) for i in range(2)])

    port = free_port()
    own = [[*cut, *flags_of(i, port), "--cluster_heartbeat=20"] for i in range(2)]
    scripts = [(PATCHES, own[0]), (PATCHES, own[1])]
    scripts[killed] = HANGING, [mark, *own[killed]]
    started = [begin(script, arguments) for script, arguments in scripts]
    await_that(lambda: mark.exists() and list((tmp_path / "cut").rglob("rows-*.json")), started)
    started[killed].kill()
    code, _, err = outcome(started, timeout=120)[1 - killed]
    assert code < 0 and "the same command: it goes on" in err.splitlines()[-1], err
    assert not (tmp_path / "cut" / "summary.json").exists()

    port = free_port()
    finished([begin(PATCHES, [*cut, *flags_of(i, port)]) for i in range(2)])
    summaries = [json.loads((tmp_path / n / "summary.json").read_text()) for n in ("whole", "cut")]
    assert 0 < summaries[1]["scored"] < summaries[0]["scored"]
    found, wanted = (content(tmp_path / name / "retinal_swap") for name in ("cut", "whole"))
    assert found.keys() == wanted.keys() and any("array_record" in name for name in wanted)
    for name in wanted:
        assert found[name] == wanted[name] or name.endswith("manifest.json"), name


@pytest.mark.slow
def test_the_route_patches_is_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(patch_plan, "PART", 3)
    monkeypatch.setattr(patch_store, "PART", 3)
    command = patches_command(tmp_path, 0.01)
    from medinit_jax.core.config import read_command_line

    port = free_port()
    more = [f"--workdir={tmp_path}/two"]
    finished([begin(PATCHES, [*command, *more, *flags_of(i, port)]) for i in range(2)])
    config = read_command_line(["test", *command]).config
    wanted = score.run(config, tmp_path / "one", Parallel(jax.local_devices()[:2]))
    found = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert found["scored"] == wanted["scored"] > 6 and found["pairs"] == wanted["pairs"]
    sets = [open_pairs(str(tmp_path / name)) for name in ("one", "two")]
    assert sets[0].table.names == sets[1].table.names
    np.testing.assert_allclose(sets[1].table.scores, sets[0].table.scores, atol=2e-6)
    assert (tmp_path / "two" / "report.html").is_file()
    shutil.rmtree(tmp_path / "data")
