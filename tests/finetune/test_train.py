"""Fine-tuning as a whole: what it leaves, that it resumes exactly, and what it refuses."""

import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny_finetune import tiny

from medinit_jax import finetune
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import load_params
from medinit_jax.core.workdir import claim_workdir
from medinit_jax.downstream import scores
from medinit_jax.finetune.train import Tuning


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_what_a_run_leaves(tuned, kind):
    summary = summary_of(tuned[kind])
    assert summary["kind"] == kind and summary["start"]["name"] == "random"
    assert [row["epoch"] for row in summary["epochs"]] == [1, 2]
    best = max(summary["epochs"], key=lambda row: row["validation"])
    assert summary["best"]["epoch"] == best["epoch"]
    assert summary["last"]["epoch"] == 2
    assert not summary["diverged"] and summary["skipped_steps"] == 0
    tree, record = load_params(tuned[kind] / "model", "model")
    assert record["kind"] == kind and "params" in tree
    for name in ("metrics.jsonl", "config.json", "predictions.npz"):
        assert (tuned[kind] / name).is_file()


def test_predictions_give_the_figures_again(tuned):
    summary = summary_of(tuned["classification"])
    with np.load(tuned["classification"] / "predictions.npz", allow_pickle=False) as held:
        labels = {name: held[f"{name}/label"] for name in ("dr", "dme")}
        right = [held[f"{n}/probability"].argmax(1) == labels[n] for n in labels]
        assert len(held["id"]) == summary["images"]["test"]
    assert summary["best"]["test"]["metric"] == pytest.approx(np.all(right, axis=0).mean())
    summary = summary_of(tuned["segmentation"])
    with np.load(tuned["segmentation"] / "predictions.npz", allow_pickle=False) as held:
        counts = {"vessel": held["vessel/counts"]}
    heads = [type("Head", (), {"name": "vessel"})]
    found = scores.value_of_counts("Dice", heads, counts)
    assert summary["best"]["test"]["metric"] == pytest.approx(found)


def test_maps_are_kept_after_the_chosen_epochs(tuned):
    with np.load(tuned["classification"] / "cams.npz", allow_pickle=False) as held:
        assert held["image"].shape[1:] == (32, 32, 3)
        assert len(held["cam_1"]) == len(held["cam_2"]) == len(held["image"])
    found = summary_of(tuned["classification"])["cam"]
    assert found["epochs"] == [1, 2] and found["drift"][1] == pytest.approx(0, abs=1e-6)


def test_stopped_and_resumed_equals_uninterrupted(tuned, data_dir, tmp_path):
    """Stopped at the second step; the same parameters, curve and figures follow."""
    config = tiny("segmentation", data_dir)
    claim_workdir(tmp_path, config, "finetune")
    first = Tuning(config, tmp_path, Console(file=io.StringIO()))
    step, steps = first.step, []

    def stopping(*arguments):
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        return step(*arguments)

    first.step = stopping
    with pytest.raises(KeyboardInterrupt):
        first.run()
    finetune.run(config, tmp_path)
    whole, pieces = (summary_of(w) for w in (tuned["segmentation"], tmp_path))
    assert whole["epochs"] == pieces["epochs"]
    assert whole["best"] == pieces["best"]
    trees = [load_params(w / "model", "model")[0] for w in (tuned["segmentation"], tmp_path)]
    for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_is_not_run_again(tuned, data_dir, capsys):
    finetune.run(tiny("segmentation", data_dir), tuned["segmentation"])
    assert "is finished" in capsys.readouterr().err
    with pytest.raises(UsageError, match="holds a run of finetune with another configuration"):
        finetune.run(tiny("segmentation", data_dir, "--config.seed=3"), tuned["segmentation"])


def test_accumulated_parts_are_one_batch(data_dir, tmp_path):
    """Without batch statistics the mean over parts is the mean over the batch."""
    losses = []
    for accumulate in (1, 2):
        config = tiny(
            "segmentation",
            data_dir,
            f"--config.train.accumulate={accumulate}",
            "--config.model.norm=gn",
            "--config.train.epochs=1",
        )
        finetune.run(config, tmp_path / str(accumulate))
        losses.append(summary_of(tmp_path / str(accumulate))["epochs"][0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_what_is_frozen_stays(tuned, data_dir, tmp_path):
    config = tiny(
        "segmentation",
        data_dir,
        "--config.train.freeze=encoder",
        "--config.train.ema=0.5",
        "--config.train.epochs=1",
        "--config.init.start=encoder",
        f"--config.init.path={tuned['segmentation']}",
    )
    finetune.run(config, tmp_path)
    before, after = (
        load_params(w / "model", "model")[0] for w in (tuned["segmentation"], tmp_path)
    )
    moved = 0
    for module, leaves in after["params"].items():
        for leaf, value in leaves.items():
            same = np.array_equal(value, before["params"][module][leaf])
            assert same or not module.startswith("encoder"), module
            moved += not same
    assert moved
    for name, leaves in after["batch_stats"].items():
        if name.startswith("encoder"):
            np.testing.assert_array_equal(leaves["mean"], before["batch_stats"][name]["mean"])
    start = summary_of(tmp_path)["start"]
    assert start["taken"] == sum(len(v) for k, v in after["params"].items() if "encoder" in k)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--config.train.batch=500", "training images, fewer than the 500 of a batch"),
        ("--config.train.accumulate=3", "does not divide into config.train.accumulate=3 parts"),
        ("--config.train.freeze=stem", "config.train.freeze names 'stem', but no module"),
        ("--config.train.layer_decay=2.0", "config.train.layer_decay=2.0; it lies in"),
        ("--config.train.class_weights=yes", "config.train.class_weights='yes'"),
        ("--config.train.dtype=half", "config.train.dtype='half'"),
        ("--config.train.devices=9", "config.train.devices=9, but 4 are here"),
        ("--config.model.name=unet", "is no network for classification"),
        ("--config.model.output_stride=8", "does not take all of config.model's"),
        ("--config.init.start=magic", "config.init.start='magic'; set it to one of: random"),
        ("--config.init.start=hyper", "needs config.init.path: the workdir of a run of"),
        ("--config.metric=kappa", "no metric 'kappa' for classification"),
    ],
)
def test_bad_input_is_a_sentence(data_dir, tmp_path, change, words):
    with pytest.raises(UsageError, match=words):
        Tuning(tiny("classification", data_dir, change), tmp_path, Console(file=io.StringIO()))


def test_a_start_of_another_encoder_is_refused(tuned, data_dir, tmp_path):
    config = tiny(
        "segmentation",
        data_dir,
        "--config.init.start=encoder",
        f"--config.init.path={tuned['classification']}",
    )
    with pytest.raises(UsageError, match="config.model.name=.* has another encoder"):
        Tuning(config, tmp_path, Console(file=io.StringIO()))


def test_devices_share_a_batch(data_dir, tmp_path):
    """Batch statistics are those of the whole batch, and moments may be divided likewise."""
    losses = []
    for devices in (1, 2):
        config = tiny("classification", data_dir, "--config.train.epochs=1")
        config.unlock()
        config.train.devices = devices
        config.optim.sharded = devices > 1
        config.train.steps = 2
        found = Tuning(config, tmp_path / str(devices), Console(file=io.StringIO())).run()
        losses.append(found["epochs"][0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
