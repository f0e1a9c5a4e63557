"""A training of several pretexts as a whole: stopped and resumed, its best step published."""

import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import medinit_jax
from medinit_jax.arch import space as space_lib
from medinit_jax.arch.space import Space, Split
from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parallel import Parallel
from medinit_jax.data.sources import Subset
from medinit_jax.hyper import setup
from medinit_jax.hyper import train as train_lib
from medinit_jax.hyper.initializer import init_theta
from medinit_jax.hyper.objective import HEADS, split
from medinit_jax.hyper.selection import Best, TransferProbe

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "hyper.py"
SIZE = 16
NARROW = Space(
    "narrow",
    {
        name: Split(100, n_cells=(3, 3), deep=(3,), steps=(1, 1, 1), norm="bn")
        for name in ("train", "val", "test")
    },
    operations=("none", "max_pool_3x3", "skip_connect", "conv_1x1"),
    stem_kernels=(3,),
    stem_types=(0,),
    multipliers=(1,),
    fc_layers=(1,),
    stem_pool=1.0,
    widen=lambda space, arch, parameters, rng: space_lib.dataclasses.replace(arch, C=16),
)


@pytest.fixture(scope="module", autouse=True)
def narrow():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(space_lib.SPACES, "narrow", NARROW)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noise, brighter where the label is 1."""
    random, arrays = np.random.default_rng(0), {}
    for name, count in (("train", 48), ("val", 64), ("test", 16)):
        labels = np.arange(count) % 2
        noise = random.integers(0, 150, (count, SIZE, SIZE))
        arrays[f"{name}_images"] = (noise + 100 * labels[:, None, None]).astype(np.uint8)
        arrays[f"{name}_labels"] = labels
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def make_config(images):
    def make(**options):
        settings = {
            "space": "narrow", "data.source": "npz", "data.path": images, "data.size": SIZE,
            "hyper.hidden": 8, "hyper.max_shape": (8, 8, 5, 5), "train.batch_size": 16,
            "train.bn_group": 4, "train.steps": 4, "train.validate_every": 2,
            "train.checkpoint_every": 2, "train.first_architectures": 2,
            "train.double_every": 10**6, "train.select": "probe",
            "train.probe.images.train": 32, "train.probe.images.val": 64,
            "pretext.name": "weak_labels+contrast", "pretext.width": 16,
            "pretext.begin.contrast": 0.5,
        } | {name.replace("__", "."): value for name, value in options.items()}  # fmt: skip
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        return read_command_line(["test", f"--config={CONFIG}:smoke", *flags]).config

    return make


@pytest.fixture(scope="module")
def compiled(make_config):
    return setup.make_bilevel(make_config(), Parallel(jax.devices()[:1]))


def train(config, workdir, bilevel, **options):
    workdir.mkdir(exist_ok=True)
    return train_lib.train(config, workdir, Console(file=io.StringIO()), bilevel=bilevel, **options)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(jax.device_get(tree))]


def validated(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if "val/probe" in line}, lines


@pytest.fixture(scope="module")
def whole(make_config, compiled, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(make_config(), workdir, compiled)


def test_figures_of_every_pretext_are_logged_and_heads_learn(whole, compiled, make_config):
    workdir, final = whole
    checked, lines = validated(workdir)
    before, logged = (line for line in lines if "train/loss" in line)
    # Contrast counts from the half on.
    assert before["train/loss"] == pytest.approx(before["train/loss/weak_labels"], rel=1e-5)
    assert before["train/loss/contrast"] > 0
    for name in ("weak_labels", "contrast"):
        assert {f"train/{key}/{name}" for key in ("loss", "score", "spread")} <= set(logged)
        assert f"val/score/{name}" in checked[4]
    total = logged["train/loss/weak_labels"] + logged["train/loss/contrast"]
    assert logged["train/loss"] == pytest.approx(total, rel=1e-5)
    theta, heads = split(jax.device_get(final.params))
    assert set(heads) == {"weak_labels", "contrast"} and HEADS not in theta
    key = jax.random.fold_in(jax.random.key(make_config().seed), 1 << 31)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()),
        heads,
        jax.device_get(compiled.objective.heads(key)),
    )
    assert all(0 < leaf < 0.1 for leaf in jax.tree.leaves(moved))


def test_the_step_that_transfers_best_is_published(whole):
    workdir, final = whole
    checked, _ = validated(workdir)
    summary = json.loads((workdir / "train.json").read_text())
    best = max(checked, key=lambda step: checked[step]["val/probe"])
    assert set(checked) == {2, 4} and summary["published_step"] == best
    assert summary["probe"] == pytest.approx(checked[best]["val/probe"])
    published = medinit_jax.load(workdir)
    assert HEADS not in published.theta
    same = bits(published.theta) == bits(split(final.params)[0])
    assert same == (best == 4)
    assert published.metadata["pretext"]["name"] == "weak_labels+contrast"


def test_stopped_and_resumed_equals_uninterrupted(whole, make_config, compiled, tmp_path):
    workdir = tmp_path / "parts"
    train(make_config(), workdir, compiled, stop_after=2)
    resumed = train(make_config(), workdir, compiled)
    assert bits(resumed.params) == bits(whole[1].params)
    assert bits(medinit_jax.load(workdir).theta) == bits(medinit_jax.load(whole[0]).theta)


@pytest.mark.parametrize("by_class", [False, True], ids=["mixed", "one class after the other"])
def test_brightness_is_found_by_the_probe(make_config, compiled, by_class):
    """Labels that any feature of brightness tells: near 1; labels of noise would be near 0.5."""
    config = make_config()
    sources = setup.open_sources(config, Console(file=io.StringIO()))
    if by_class:
        # As in folders; 32 of the 48 training images are probed.
        for name, held in sources.items():
            order = np.arange(len(held)).reshape(-1, 2).T.ravel()
            sources[name] = Subset(held, order, name)
    programs = {"val:0": NARROW.program("val", 0, 4)}
    theta = init_theta(compiled.module, jax.random.key(0))["params"]
    assert TransferProbe(compiled, sources, programs)(theta) > 0.9


def test_the_best_is_kept_and_a_later_one_forgotten_when_resumed(tmp_path):
    best = Best(tmp_path, 0)
    for step, score in ((1, 0.5), (2, 0.7), (3, 0.6), (4, 0.7)):
        best.consider(step, {"a": np.full(1, step, np.float32)}, score)
    assert (best.step, best.score) == (2, 0.7) and best.theta()["a"] == 2
    again = Best(tmp_path, 2)
    assert (again.step, again.score) == (2, 0.7)
    assert Best(tmp_path, 1).step == -1 and not (tmp_path / "best").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train__select": "best"}, "config.train.select='best' is none of auto, last, probe"),
        ({"train__probe__label": "all"}, "config.train.probe.label='all'; set it to any or class"),
        ({"train__validate_every": 0}, "needs validation: set config.train.validate_every"),
        ({"data__path": None, "pretext__name": "contrast"}, "needs labels of two kinds"),
        ({"train__probe__images__val": 8}, "at least 32 labeled images"),
        ({"data__path": None}, "weak_labels of config.pretext.name needs images with labels"),
    ],
    ids=str,
)
def test_what_cannot_be_selected_by(make_config, images, tmp_path, options, words):
    if "data__path" in options:
        options = options | {"data__path": tmp_path / "unlabeled.npz"}
        with np.load(images) as file:
            unlabeled = {name: array for name, array in file.items() if "images" in name}
        np.savez(options["data__path"], **unlabeled)
    config = make_config(**options)
    bilevel = setup.make_bilevel(config, Parallel(jax.devices()[:1]))
    with pytest.raises(UsageError, match=words):
        train(config, tmp_path / "run", bilevel)
