"""Pretraining as a whole: what it leaves, that it resumes exactly, what it hands on and refuses."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
from tiny_finetune import tiny as tiny_finetune
from tiny_pretrain import NAME, ODIR, quiet, tiny

from medinit_jax import finetune, swcl
from medinit_jax.core.checkpoint import Checkpoints
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import load_params
from medinit_jax.core.workdir import claim_workdir
from medinit_jax.finetune.network import make_network
from medinit_jax.finetune.starts import make_start
from medinit_jax.swcl.methods import Byol, Dino
from medinit_jax.swcl.pretrain import Pretraining, _collapse_warning

SMALL_HEADS = {"dino": ("--config.loss.prototypes=32",)}
SMALL_HEADS["dino_official"] = SMALL_HEADS["dino"]
VARIANTS = ("swcl", "swcl_image", "multitask", "simclr", "byol", "dino", "dino_official")

pytestmark = pytest.mark.usefixtures("tinynet")


def configured(variant, data_dir, *more):
    return tiny(variant, data_dir, *SMALL_HEADS.get(variant, ()), *more)


@pytest.fixture(scope="module")
def ran(data_dir, tmp_path_factory):
    """Returns a function: variant to the workdir of its finished run."""
    found = {}

    def run(variant):
        if variant not in found:
            found[variant] = tmp_path_factory.mktemp(variant) / "run"
            swcl.run(configured(variant, data_dir), found[variant])
        return found[variant]

    return run


def summary_of(workdir):
    return json.loads((workdir / "summary.json").read_text())


def curve(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def flat(tree):
    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def equal(a, b):
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], name)


@pytest.mark.parametrize(
    "variant",
    [v if v == "swcl" else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS],
)
def test_what_a_run_leaves(ran, data_dir, variant):
    workdir = ran(variant)
    summary, config = summary_of(workdir), configured(variant, data_dir)
    assert summary["method"] == config.method == variant.removesuffix("_official")
    assert summary["steps"] == 3 and summary["skipped_steps"] == 0
    lines = curve(workdir)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(np.isfinite(line["train/loss"]) for line in lines)
    assert summary["last"]["loss"] == lines[-1]["train/loss"]
    tree, record = load_params(workdir / "model", "model")
    assert record["kind"] == "encoder" and record["model"]["name"] == NAME
    assert "fc" not in tree["params"] and "conv1" in tree["params"]
    assert summary["parameters"] == sum(x.size for x in jax.tree.leaves(tree["params"]))
    assert summary["images"] == summary["data"]["count"] * (2 if config.data.patches else 1)
    network = make_network(config.model, config.data.size, 2, "classification")
    before = make_start(config, network, quiet()).params
    moved = [np.abs(tree["params"][m][k] - before[m][k]).max() > 1e-5
             for m, leaves in tree["params"].items() for k in leaves]  # fmt: skip
    assert all(moved)
    assert all(np.abs(s["mean"]).max() > 0 for s in tree["batch_stats"].values())


@pytest.mark.slow
def test_figures_of_the_methods_are_logged(ran):
    names = {
        "swcl": {"positives", "alignment", "uniformity", "spread", "collapse_distance"},
        "simclr": {"positives", "alignment", "uniformity", "spread", "collapse_distance"},
        "byol": {"spread"},
        "dino": {"teacher_entropy", "teacher_information"},
        "multitask": {"accuracy_abnormality", "accuracy_position"},
    }
    for variant, wanted in names.items():
        assert set(summary_of(ran(variant))["last"]) == wanted | {"loss", "grad_norm"}
    assert summary_of(ran("simclr"))["last"]["positives"] == 1
    assert summary_of(ran("swcl"))["last"]["positives"] > 1


@pytest.mark.parametrize(
    "variant",
    ["swcl", *(pytest.param(v, marks=pytest.mark.slow) for v in ("byol", "dino_official"))],
)
def test_stopped_and_resumed_equals_uninterrupted(ran, data_dir, tmp_path, variant):
    """Interrupted in the second step: state, curve and encoder follow bit by bit."""
    config = configured(variant, data_dir)
    claim_workdir(tmp_path, config, "swcl", free=swcl.FREE)
    first = Pretraining(config, tmp_path, quiet())
    step, steps = first.step, []

    def stopping(*arguments):
        steps.append(1)
        if len(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    first.step = stopping
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert not (tmp_path / "summary.json").exists() and len(steps) == 2
    swcl.run(config, tmp_path)
    whole = ran(variant)
    assert curve(whole) == curve(tmp_path)
    equal(*(load_params(w / "model", "model")[0] for w in (whole, tmp_path)))
    states = []
    for place in (whole, tmp_path):
        checkpoints = Checkpoints(place / "checkpoints", keep=2)
        states.append(checkpoints.restore(first.first_state()).state)
        checkpoints.close()
    assert int(states[0].step) == 3
    equal(*states)


def test_a_finished_run_is_not_run_again(ran, data_dir, capsys):
    workdir = ran("multitask")
    before = (workdir / "summary.json").read_text()
    swcl.run(configured("multitask", data_dir), workdir)
    assert "is finished" in capsys.readouterr().err
    assert (workdir / "summary.json").read_text() == before
    with pytest.raises(UsageError, match="holds a run of swcl with another configuration"):
        swcl.run(configured("multitask", data_dir, "--config.seed=3"), workdir)


def test_a_run_that_ended_before_its_summary_writes_it(ran, data_dir, tmp_path):
    """Killed after the last step: nothing is trained again, and the same is written."""
    whole = ran("byol")
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "run" / "model")
    swcl.run(configured("byol", data_dir), tmp_path / "run")
    assert curve(tmp_path / "run") == curve(whole)
    equal(*(load_params(w / "model", "model")[0] for w in (whole, tmp_path / "run")))
    assert summary_of(tmp_path / "run")["last"] == summary_of(whole)["last"]


@pytest.mark.parametrize("export", ["student", "teacher"])
def test_either_network_of_byol_is_exported(ran, data_dir, tmp_path, export):
    """The last steps of a finished run are not trained again, but written anew."""
    config = configured("byol", data_dir, f"--config.export={export}")
    source = ran("byol")
    run = Pretraining(config, tmp_path, quiet())
    checkpoints = Checkpoints(source / "checkpoints", keep=2)
    state = checkpoints.restore(run.first_state()).state
    checkpoints.close()
    run._write_model(state)
    tree, _ = load_params(tmp_path / "model", "model")
    held = {"params": state.train.params, "statistics": state.statistics}
    held = state.target if export == "teacher" else held
    equal(tree["params"], held["params"]["encoder"])
    equal(tree["batch_stats"], held["statistics"]["encoder"])
    gap = flat(state.target["params"])
    assert any(np.abs(gap[k] - v).max() > 0 for k, v in flat(state.train.params).items())


def start_on(model, workdir, kind, size=64, **options):
    """Returns network and start of a fine-tuning from an encoder."""
    described = {"name": model, "stem": "small", "width": 4, **options}
    network = make_network(described, size, 3, kind)
    config = tiny("simclr", workdir, "--config.init.start=encoder", f"--config.init.path={workdir}")
    return network, make_start(config, network, quiet())


@pytest.mark.parametrize("variant", ["swcl", "dino"])
def test_a_classifier_takes_the_whole_encoder(ran, variant):
    tree, _ = load_params(ran(variant) / "model", "model")
    network, start = start_on(NAME, ran(variant), "classification")
    assert start.record["left"] == []
    assert start.record["taken"] == len(jax.tree.leaves(tree["params"]))
    assert start.record["of"] == start.record["taken"] + 2
    head = network.program.head
    equal({k: v for k, v in start.params.items() if k != head}, tree["params"])
    equal(start.statistics, tree["batch_stats"])


def test_a_deeplab_takes_the_whole_encoder(ran):
    tree, _ = load_params(ran("swcl") / "model", "model")
    _, start = start_on(f"deeplabv3plus_{NAME}", ran("swcl"), "segmentation", output_stride=8)
    assert start.record["left"] == []
    assert start.record["taken"] == len(jax.tree.leaves(tree["params"]))
    for name, leaves in tree["params"].items():
        equal(start.params[f"encoder.{name}"], leaves)
    for name, leaves in tree["batch_stats"].items():
        equal(start.statistics[f"encoder.{name}"], leaves)


def test_a_fine_tuning_begins_with_it(ran, data_dir, tmp_path):
    config = tiny_finetune(
        "classification",
        data_dir,
        f"--config.model.name={NAME}",
        "--config.model.width=4",
        "--config.model.stem=small",
        "--config.init.start=encoder",
        f"--config.init.path={ran('simclr')}",
        "--config.train.epochs=1",
    )
    finetune.run(config, tmp_path)
    start = summary_of(tmp_path)["start"]
    assert start["name"] == "encoder" and start["taken"] == start["of"] - 2 and not start["left"]


REFUSED = [
    ("simclr", "method=moco", "config.method='moco'; set it to one of: swcl"),
    ("swcl", "data.patches=", "config.data.patches is empty"),
    ("swcl", "data.patches=/nowhere", "/nowhere/labels.csv cannot be read"),
    ("simclr", "data.sets=", "config.data.sets is empty"),
    ("simclr", f"data.sets={ODIR}:nowhere", "which has no images; its splits are train"),
    ("simclr", f"data.sets={ODIR},{ODIR}:test", "names the split test of .* twice"),
    ("simclr", "train.batch=6", "does not divide among 4 device"),
    ("simclr", "train.batch=400", "batch=400, but there are 20 images"),
    ("simclr", "train.epochs=0", "are no length"),
    ("simclr", "train.log_every=0", "config.train.log_every=0 is no number of steps"),
    ("simclr", "train.dtype=half", "config.train.dtype='half'"),
    ("simclr", "model.name=unet", "is no network for classification"),
    ("simclr", "init.start=encoder", "needs config.init.path"),
    ("simclr", "optim.warmup_epochs=9.0", "warmup_epochs=9.0 are 27 of 3 steps"),
    ("simclr", "optim.name=lamb", "name='lamb'"),
    ("simclr", "data.views=none", "config.data.views='none'; set it to one of: contrastive"),
    ("simclr", "data.views=ft_cls", "has 1 views and 0 local ones"),
    ("simclr", "data.views=dino_official", "has 2 views and 8 local ones"),
    ("byol", "data.views=dino_official", "has 2 views and 8 local ones.*byol_asym.$"),
    ("multitask", "data.views=contrastive", "set it to one of: sup_pre, ft_cls"),
    ("simclr", "data.normalization=none", "config.data.normalization='none'"),
    ("simclr", "data.size=0", "config.data.size=0 and image_size=24 are sides"),
    ("simclr", "export=teacher", "config.export='teacher' does nothing for config.method=simclr"),
    ("byol", "export=both", "config.export='both'; set it to one of: student, teacher"),
    ("byol", "loss.head_norm=ln", "head_norm is 'ln'"),
    ("swcl", "loss.scheme=none", "no label scheme 'none'"),
    ("swcl", "loss.threshold=2.0", "threshold of abnormality is 2.0"),
    ("simclr", "train.bn_group=5", "bn_group=5 does not divide a batch, which has 16 views"),
    ("dino_official", "train.bn_group=32", "which has 16 and 64 views"),
    # Changes that would do nothing.
    ("swcl", "loss.prototypes=8", "config.loss.prototypes=8 does nothing .*leave it at 4096"),
    ("swcl", "train.ema=0.9", "config.train.ema=0.9 does nothing"),
    ("dino", "loss.head_norm=bn", "config.loss.head_norm='bn' does nothing"),
    ("byol", "loss.temperature=0.2", "config.loss.temperature=0.2 does nothing"),
    ("byol", "train.frozen_epochs=1", "config.train.frozen_epochs=1 does nothing"),
    ("simclr", "loss.scheme=position", "config.loss.scheme='position' does nothing"),
    ("simclr", "data.patches=runs/patches", "config.data.patches='runs/patches' does nothing"),
    (
        "swcl",
        f"data.sets={ODIR}",
        "config.data.sets='phantom_odir.*' does nothing .*at ''",
    ),
    ("multitask", "data.image_size=24", "config.data.image_size=24 does nothing .*at 448"),
    (
        "swcl",
        "optim.nesterov=True",
        "changes optim.nesterov, .*name=adamw; leave it at False",
    ),
    ("simclr", "optim.milestones=(1,)", "changes optim.milestones, .*schedule=cosine; leave it at"),
    ("swcl_image", "loss.threshold=0.3", "config.loss.threshold=0.3 does nothing"),
    ("multitask", "loss.scheme=position", "config.loss.scheme='position' does nothing"),
]


@pytest.mark.parametrize(("variant", "change", "words"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_cannot_be_is_said_in_a_sentence(data_dir, tmp_path, variant, change, words):
    config = configured(variant, data_dir, f"--config.{change}")
    with pytest.raises(UsageError, match=words) as error:
        Pretraining(config, tmp_path, quiet())
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("loss.scheme=position", "loss.threshold=0.3"), "config.loss.threshold=0.3 does nothing"),
        (("model.norm=gn", "train.bn_group=4"), "nothing in this network has batch normalization"),
    ],
)
def test_what_two_settings_make_of_each_other(data_dir, tmp_path, changes, words):
    config = configured("swcl", data_dir, *(f"--config.{change}" for change in changes))
    with pytest.raises(UsageError, match=words):
        Pretraining(config, tmp_path, quiet())


def test_photographs_without_labels_are_refused_for_swcl_image(data_dir, tmp_path):
    folder = tmp_path / "patches"
    folder.mkdir()
    for path in (data_dir / "patches").iterdir():
        text = path.read_bytes()
        if path.name == "labels.csv":
            text = b"\n".join(line.rsplit(b",", 2)[0] for line in text.splitlines())
        (folder / path.name).write_bytes(text)
    config = configured("swcl_image", data_dir, f"--config.data.patches={folder}")
    with pytest.raises(UsageError, match="^8 pairs of .* come from photographs without a label"):
        Pretraining(config, tmp_path, quiet())


def test_a_start_of_another_encoder_is_refused(ran, data_dir, tmp_path):
    start = ("--config.init.start=encoder", f"--config.init.path={ran('swcl')}")
    config = configured("swcl", data_dir, *start, "--config.model.name=resnet18")
    with pytest.raises(UsageError, match="config.model.name=resnet18 has another encoder"):
        Pretraining(config, tmp_path, quiet())


def test_patches_on_one_side_of_the_threshold_are_a_warning(data_dir, tmp_path):
    console = quiet()
    run = Pretraining(
        configured("swcl", data_dir, "--config.loss.threshold=1.0"), tmp_path, console
    )
    assert run.one_sided.startswith("All 16 patches lie below the threshold 1.0")
    assert "WARNING: All 16 patches" in console.file.getvalue()


def test_a_collapse_is_said():
    assert "(spread 0.010 of 1)" in _collapse_warning({"train/spread": 0.01}, Byol())
    assert _collapse_warning({"train/spread": 0.3}, Byol()) == ""
    assert _collapse_warning({}, Byol()) == ""
    teacher = Dino(4096)

    def said(entropy, information):
        last = {"train/teacher_entropy": entropy, "train/teacher_information": information}
        return _collapse_warning(last, teacher)

    # All prototypes alike, always the same one, and a different one of each image.
    assert "(entropy 8.318 of 8.318)" in said(8.3178, 0.0)
    assert "says the same of all images" in said(1e-5, 1e-6)
    assert said(1e-5, 2.0) == ""


def test_milestones_and_warm_up_count_epochs(data_dir, tmp_path):
    """Eight patches of sixteen in a batch: two steps an epoch."""
    config = configured(
        "multitask",
        data_dir,
        "--config.train.steps=0",
        "--config.train.epochs=5",
        "--config.optim.schedule=step",
        "--config.optim.milestones=(2, 4)",
        "--config.optim.warmup_epochs=1.5",
    )
    run = Pretraining(config, tmp_path, quiet())
    settings = dict(run.recipe.optimizer)
    assert (run.total, settings["total_steps"]) == (10, 10)
    assert settings["milestones"] == (4, 8) and settings["warmup_steps"] == 3
