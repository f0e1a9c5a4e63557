"""The labeler as a whole: two epochs, resuming, milestones, and the unlabelled sets."""

import json
import signal

import jax
import numpy as np
import pytest
from tiny_pretrain import CONFIGS, NAME, quiet

from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import load_params
from medinit_jax.core.workdir import claim_workdir
from medinit_jax.data.tasks import make_builder
from medinit_jax.downstream.heads import UNKNOWN
from medinit_jax.finetune import FREE
from medinit_jax.finetune.examples import Cache, Examples, Records
from medinit_jax.swcl import labeler
from medinit_jax.swcl.labeler import Labeling

LABELLED = "phantom_eyepacs_dr_32px_x0.01"
# Two sets, each with a split of the same name.
FIRST, SECOND = "phantom_odir_32px_x0.02", "phantom_aptos_dr_32px_x0.02"

pytestmark = pytest.mark.usefixtures("tinynet")


def configured(data_dir, *overrides):
    command = [
        "test",
        f"--config={CONFIGS}/labeler.py:phantom",
        f"--config.data.data_dir={data_dir}",
        f"--config.task={LABELLED}",
        f"--config.s4l.sets={FIRST}:train,{SECOND}:train",
        "--config.s4l.unlabelled_batch=4",
        "--config.s4l.views=2",
        f"--config.model.name={NAME}",
        "--config.model.width=4",
        "--config.model.last_stride=0",
        "--config.data.size=16",
        "--config.train.epochs=2",
        "--config.train.batch=4",
        "--config.train.accumulate=2",
        "--config.train.devices=1",
        "--config.train.validate_every=1",
        "--config.evaluate.resamples=20",
        *overrides,
    ]
    return read_command_line(command).config


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("labeler") / "run"
    labeler.run(configured(data_dir), workdir)
    return workdir


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


def test_milestones_are_epochs(data_dir, tmp_path):
    """Falls by a tenth after the second and the third epoch, whatever an epoch has of steps."""
    config = configured(
        data_dir,
        "--config.train.epochs=4",
        "--config.optim.milestones=(2, 3)",
        "--config.optim.learning_rate=0.5",
    )
    run = Labeling(config, tmp_path, quiet())
    each = run.steps_per_epoch
    assert each == -(-len(run.images.train) // 4) > 1
    rates = [float(run.schedule(step)) for step in range(4 * each)]
    wanted = [0.5] * (2 * each) + [0.05] * each + [0.005] * each
    np.testing.assert_allclose(rates, wanted, 1e-6)


def test_it_leaves_what_a_fine_tuning_leaves(trained):
    summary = summary_of(trained)
    assert [row["epoch"] for row in summary["epochs"]] == [1, 2]
    assert summary["metric"] == "AUC" and summary["skipped_steps"] == 0
    assert all(np.isfinite(row["loss"]) for row in summary["epochs"])
    tree, record = load_params(trained / "model", "model")
    assert [head["classes"] for head in record["heads"]] == [["normal", "abnormal"]]
    assert "fc" in tree["params"]
    with np.load(trained / "predictions.npz", allow_pickle=False) as held:
        assert len(held["id"]) == summary["images"]["test"]
        assert held["abnormal/probability"].shape[1] == 2


def test_stopped_and_resumed_equals_uninterrupted(trained, data_dir, tmp_path, capsys):
    config = configured(data_dir)
    claim_workdir(tmp_path, config, "labeler", free=FREE)
    first = Labeling(config, tmp_path, quiet())
    step, steps = first.step, []

    def stopping(*arguments):
        steps.append(1)
        if len(steps) == first.steps_per_epoch + 2:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    first.step = stopping
    with pytest.raises(KeyboardInterrupt):
        first.run()
    labeler.run(config, tmp_path)
    assert f"Going on from step {first.steps_per_epoch + 2}." in capsys.readouterr().err
    whole, pieces = summary_of(trained), summary_of(tmp_path)
    assert whole["epochs"] == pieces["epochs"] and whole["best"] == pieces["best"]
    trees = [load_params(w / "model", "model")[0] for w in (trained, tmp_path)]
    for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sets_of_one_split_name_keep_their_own_images(data_dir, tmp_path):
    """Read again one by one: nothing comes out of the other set's place in memory."""
    run = Labeling(configured(data_dir), tmp_path, quiet())
    opened = labeler.open_unlabelled(run.config, run.images, quiet())
    assert [part.records.name.rpartition("/")[2] for part in opened] == [FIRST, SECOND]
    for part, name in zip(opened, (FIRST, SECOND), strict=True):
        records = Records(make_builder(name, str(data_dir)), "train")
        fresh = Examples(records, part.indices, {}, part.ids, part.ids, run.images.plan, Cache(0.0))
        for number in range(3):
            np.testing.assert_array_equal(part.image(number), fresh.image(number))
        # Once more, now out of memory.
        np.testing.assert_array_equal(part.image(0), fresh.image(0))
    assert not np.array_equal(opened[0].image(0), opened[1].image(0))


def test_batches_hold_both_kinds_in_every_part(data_dir, tmp_path):
    batch = Labeling(configured(data_dir), tmp_path, quiet()).batches.source[0]
    assert batch["image"].shape == (8, 2, 16, 16, 3)
    known = batch["targets"]["abnormal"] != UNKNOWN
    np.testing.assert_array_equal(known, [True, True, False, False] * 2)
    assert not np.array_equal(batch["image"][:, 0], batch["image"][:, 1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("s4l.sets=", "config.s4l.sets names no unlabelled images"),
        (f"s4l.sets={LABELLED}:test", "unlabelled images are images of the labelled task, too"),
        (f"s4l.sets={FIRST}:train,{FIRST}", "names the split train of .* twice"),
        (f"s4l.sets={FIRST}:nowhere", "which has no images; its splits are train"),
        ("s4l.triplet=soft", "config.s4l.triplet='soft'; set it to one of: semi_hard"),
        ("s4l.views=1", "config.s4l.views=1 make no triplet"),
        ("s4l.unlabelled_batch=3", "config.s4l.unlabelled_batch=3 of"),
        ("train.accumulate=0", "config.train.accumulate=0 parts"),
        ("train.devices=4", "config.s4l.unlabelled_batch=4 does not divide into"),
        ("train.batch=400", "config.train.batch=400 of"),
        ("labels=grade", "grade"),
        ("model.name=vit_tiny_patch16_224", "The labeler does not end in global pooling and one"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(data_dir, tmp_path, change, words):
    more = [f"--config.{change}"]
    if "model.name" in change:
        more += ["--config.model.width=0", "--config.data.size=32"]
    with pytest.raises(UsageError, match=words) as error:
        Labeling(configured(data_dir, *more), tmp_path, quiet())
    assert "\n" not in str(error.value)
