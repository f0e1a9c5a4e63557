"""The training stage on two small networks and a handful of images."""

import io
import json
import logging
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny_hyper import CONFIG, SETTINGS, SIZE, TINY, write_images

from medinit_jax import hyper
from medinit_jax.arch import space as space_lib
from medinit_jax.core import optim, state
from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parallel import Parallel
from medinit_jax.core.workdir import claim_workdir
from medinit_jax.hyper import setup
from medinit_jax.hyper import train as train_lib
from medinit_jax.hyper.bilevel import gradient_by_tape
from medinit_jax.hyper.initializer import init_theta
from medinit_jax.hyper.stream import ArchitectureStream


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """The space has a name while these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(space_lib.SPACES, "tiny", TINY)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images.npz")


@pytest.fixture(scope="module")
def make_config(images):
    """Function (options by dotted key) -> a config as the command line gives it."""

    def make(*arguments, **options):
        own = {name.replace("__", "."): value for name, value in options.items()}
        settings = SETTINGS | {"data.path": images} | own
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        return read_command_line(["test", f"--config={CONFIG}:smoke", *arguments, *flags]).config

    return make


@pytest.fixture(scope="module")
def compiled(make_config):
    """Function (devices) -> what training runs on, its compiled blocks shared by the tests."""
    made = {}

    def get(devices=1):
        if devices not in made:
            parallel = Parallel(jax.devices()[:devices])
            made[devices] = setup.make_bilevel(make_config(), parallel)
        return made[devices]

    return get


def train(config, workdir, bilevel, **options):
    workdir.mkdir(exist_ok=True)
    return train_lib.train(config, workdir, Console(file=io.StringIO()), bilevel=bilevel, **options)


def lines(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    # How long compiling took is no result, and a resumed run compiles again.
    return [line for line in found if "train/compile_s" not in line]


def losses(workdir):
    return [line["train/loss"] for line in lines(workdir) if "train/loss" in line]


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def uninterrupted(make_config, compiled, tmp_path_factory):
    """Workdir and last state of six steps."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(make_config(), workdir, compiled())


def test_a_run_leaves_curve_summary_and_initializer(uninterrupted, make_config, compiled):
    workdir, final = uninterrupted
    assert int(final.step) == 6 and int(final.skipped) == 0
    scalars = [line for line in lines(workdir) if "train/loss" in line]
    assert [line["step"] for line in scalars] == [2, 4, 6]
    assert all(np.isfinite(line["train/grad_norm"]) and line["skipped"] == 0 for line in scalars)
    checked = {
        line["step"]: line["val/accuracy"] for line in lines(workdir) if "val/accuracy" in line
    }
    assert set(checked) == {3, 6} and all(0 <= value <= 1 for value in checked.values())

    summary = json.loads((workdir / "train.json").read_text())
    assert {
        "steps", "seconds", "architectures", "skipped_steps", "takeoff_step", "final_loss",
        "curve_file",
    } <= set(summary)  # fmt: skip
    assert (summary["steps"], summary["architectures"], summary["skipped_steps"]) == (6, 2, 0)
    assert summary["final_loss"] == scalars[-1]["train/loss"]
    assert (workdir / summary["curve_file"]).exists()
    assert (workdir / "initializer").is_dir()

    # A second run of a complete one does nothing.
    files = [workdir / name for name in ("metrics.jsonl", "train.json")]
    before = [file.read_text() for file in files]
    again = train(make_config(), workdir, compiled())
    assert bits(again) == bits(final)
    assert [file.read_text() for file in files] == before


def test_the_initializer_holds_the_last_parameters(uninterrupted):
    medinit_jax = pytest.importorskip("medinit_jax")
    if not hasattr(medinit_jax, "load"):
        pytest.skip("the package has no load yet")
    workdir, final = uninterrupted
    assert medinit_jax.load(workdir / "initializer") is not None


@pytest.mark.parametrize("stops", [(2,), (2, 2)], ids=str)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(
    uninterrupted, make_config, compiled, tmp_path, stops
):
    whole, final = uninterrupted
    workdir = tmp_path / "parts"
    for stop in stops:
        train(make_config(), workdir, compiled(), stop_after=stop)
        assert not (workdir / "train.json").exists() and not (workdir / "initializer").exists()
    resumed = train(make_config(), workdir, compiled())
    assert bits(resumed.params) == bits(final.params)
    assert bits(resumed.opt_state) == bits(final.opt_state)
    assert lines(workdir) == lines(whole)
    timeless = [
        {k: v for k, v in json.loads((place / "train.json").read_text()).items() if k != "seconds"}
        for place in (workdir, whole)
    ]
    assert timeless[0] == timeless[1]


def _moments(state):
    """Returns the arrays of the optimizer's state, and what the first device has of them."""
    arrays = jax.tree.leaves(state.opt_state)
    return arrays, [x.addressable_shards[0].data for x in arrays]


def test_four_devices_train_as_one_does(make_config, compiled, tmp_path):
    """By SGD: Adam divides by gradients near zero, where rounding decides the sign of a step."""
    config = make_config(optim__name="sgd", optim__learning_rate=0.002, optim__sharded=True)
    runs = {n: train(config, tmp_path / str(n), compiled(n)) for n in (1, 4)}
    size, parts = (sum(x.nbytes for x in xs) for xs in _moments(runs[4]))
    assert parts < 0.3 * size
    first, second = (losses(tmp_path / str(n)) for n in (1, 4))
    assert first[0] != first[-1]
    np.testing.assert_allclose(first[0], second[0], rtol=1e-5)
    # Later, what rounding decides otherwise has grown: by as much as 3e-4 on some processors.
    np.testing.assert_allclose(first, second, rtol=1e-3)
    start = init_theta(compiled().module, jax.random.key(config.seed))["params"]
    drift, moved = (
        sum(float(((a - b) ** 2).sum()) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in ((runs[1].params, jax.device_get(runs[4].params)), (runs[1].params, start))
    )
    # A max pool that rounding decides otherwise bends single entries; the way gone is the measure.
    assert drift < 3e-3 * moved


def test_the_plain_form_trains_as_the_tape_does(uninterrupted, make_config, compiled, tmp_path):
    """Two steps, as every step compiles anew; the third loss would show a wrong update."""
    config = make_config(train__execution="whole", train__validate_every=0)
    plain = compiled()._replace(config=config)
    train(config, tmp_path / "whole", plain, stop_after=2)
    np.testing.assert_allclose(losses(tmp_path / "whole"), losses(uninterrupted[0])[:1], rtol=1e-5)


class Broken:
    """Gradients of the tape, of which those of some steps are not finite."""

    def __init__(self, *steps):
        self.steps, self.original, self.thetas = steps, train_lib.gradient_by_tape, []

    def __call__(self, writer, tape, parallel, theta, *rest):
        self.thetas.append(bits(theta))
        found, accuracies, gradient = self.original(writer, tape, parallel, theta, *rest)
        if len(self.thetas) - 1 in self.steps:
            gradient = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), gradient)
        return found, accuracies, gradient


def test_a_step_that_is_not_finite_is_left_out_counted_and_named(
    make_config, compiled, tmp_path, monkeypatch
):
    config = make_config()
    broken = Broken(3)
    monkeypatch.setattr(train_lib, "gradient_by_tape", broken)
    final = train(config, tmp_path, compiled())
    assert int(final.skipped) == 1 and int(final.step) == 6
    changed = [a != b for a, b in zip(broken.thetas, broken.thetas[1:], strict=False)]
    # The first step of the warm-up has learning rate 0, but moves nothing only at step 0.
    assert changed[1:] == [True, True, False, True]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(final.params)))
    stream = ArchitectureStream(TINY, compiled().module, 2, config.seed, 2, 10**6)
    named = stream.describe(3)
    stream.close()
    texts = [line["skipped_step"] for line in lines(tmp_path) if "skipped_step" in line]
    assert texts == [f"step 3 not finite: {named}"] and "train:" in named
    assert json.loads((tmp_path / "train.json").read_text())["skipped_steps"] == 1
    assert len(losses(tmp_path)) == 3


def test_other_families_need_the_whole_vocabulary(make_config):
    with pytest.raises(UsageError, match="space='mixed'.*node_types=15; set it to 29"):
        setup.make_bilevel(make_config(space="mixed"), Parallel(jax.devices()[:1]))


def test_too_many_such_steps_end_the_run(make_config, compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(train_lib, "gradient_by_tape", Broken(0, 1, 2))
    with pytest.raises(UsageError, match=r"aborted at step 4: 3 steps .* more than 2%.*train:"):
        train(make_config(), tmp_path, compiled())
    assert not (tmp_path / "initializer").exists()


def test_the_preset_of_the_paper(make_config, tmp_path):
    config = make_config(
        "--config.preset=seed_paper", train__steps=2, optim__warmup_steps=0, hyper__layers=2
    )
    bilevel = setup.make_bilevel(config, Parallel(jax.devices()[:1]))
    module = bilevel.module
    assert (module.mode, module.direction, module.activations) == ("sync", "incoming", True)
    assert config.optim.learning_rate == 0.001 and config.optim.schedule == "cosine"
    assert not config.pretext.circle and config.data.augment.translate == 0
    final = train(config, tmp_path, bilevel)
    assert int(final.step) == 2 and int(final.skipped) == 0 and np.isfinite(losses(tmp_path)).all()


@pytest.mark.parametrize("variant", ["fundus", "ct", "xray", "mixed"])
def test_variants_of_the_paper_are_rotation_alone(variant):
    config = read_command_line(["test", f"--config={CONFIG}:{variant}"]).config
    assert (config.pretext.name, config.hyper.tiling) == ("rotation", "repeat")
    default = read_command_line(["test", f"--config={CONFIG}"]).config
    assert (default.pretext.name, default.hyper.tiling) == ("rotation+patches", "shift")
    paper = read_command_line(["test", f"--config={CONFIG}", "--config.preset=seed_paper"]).config
    assert (paper.pretext.name, paper.hyper.tiling) == ("rotation", "repeat")


def test_an_initializer_that_writes_in_another_way_is_no_start(make_config, compiled, tmp_path):
    train(make_config(train__steps=6), tmp_path, compiled())
    config = make_config(init_from=str(tmp_path / "initializer"), hyper__tiling="repeat")
    with pytest.raises(UsageError, match=r"trained with config.hyper.tiling=shift; set that here"):
        train(config, tmp_path / "next", setup.make_bilevel(config, Parallel(jax.devices()[:1])))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train__bn_group": 12}, ["batch_size=16", "bn_group=12"]),
        ({"train__batch_size": 0}, ["config.train.batch_size=0", "at least 1"]),
        ({"train__bn_group": 0}, ["config.train.bn_group=0", "at least 1"]),
        ({"hyper__max_shape": (8, 8, 5)}, ["config.hyper.max_shape=(8, 8, 5)", "height, width"]),
        ({"train__batch_size": 18, "train__bn_group": 9}, ["batch_size=18", "multiple of 4"]),
        ({"train__dtype": "float8"}, ["config.train.dtype='float8'", "float32"]),
        ({"pretext__name": "puzzle"}, ["config.pretext.name='puzzle'", "rotation"]),
        ({"space": "huge"}, ["'huge'", "config.space", "small"]),
        ({"train__execution": "fast"}, ["config.train.execution='fast'", "whole"]),
        ({"train__execution": "whole", "train__penalty": 0.1}, ["no penalty", "penalty=0"]),
        ({"optim__warmup_steps": 6}, ["warmup_steps=6", "total_steps=6"]),
    ],
    ids=str,
)
def test_bad_options_end_in_one_sentence(make_config, tmp_path, options, words):
    config = make_config(**options)
    with pytest.raises(UsageError) as caught:
        train_lib.train(config, tmp_path, Console(file=io.StringIO()), Parallel(jax.devices()[:1]))
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message
    assert not (tmp_path / "initializer").exists()


def test_a_batch_that_the_devices_cannot_share_names_both_numbers(make_config):
    with pytest.raises(UsageError) as caught:
        setup.make_bilevel(make_config(train__bn_group=8), Parallel(jax.devices()))
    message = str(caught.value)
    assert "config.train.batch_size=16" in message and "config.train.bn_group=8" in message
    assert "4 device" in message and "multiple of 32" in message


def test_what_is_evaluated_may_change_in_a_workdir_but_not_what_is_trained(make_config, tmp_path):
    assert not claim_workdir(tmp_path, make_config(), "hyper", hyper.FREE)
    other = make_config(evaluate__batches=3, stages="('evaluate',)")
    assert claim_workdir(tmp_path, other, "hyper", hyper.FREE)
    with pytest.raises(UsageError, match="train.steps is 6 there and 7 here"):
        claim_workdir(tmp_path, make_config(train__steps=7), "hyper", hyper.FREE)


def test_too_few_images_to_validate_on(make_config, compiled, images, tmp_path):
    with np.load(images) as file:
        arrays = dict(file) | {"val_images": file["val_images"][:7]}
    few = tmp_path / "few.npz"
    np.savez(few, **arrays)
    with pytest.raises(
        UsageError, match="7 held-out images do not fill a batch of config.train.batch_size=16"
    ):
        train(make_config(data__path=few), tmp_path / "run", compiled())


def test_shares_of_architectures_have_the_gradient_of_all(make_config, compiled):
    bilevel = compiled()
    key = jax.random.key(0)
    theta = init_theta(bilevel.module, key)["params"]
    images = np.random.default_rng(0).normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    views = bilevel.views(images, key, {})

    def found(share):
        stream = ArchitectureStream(bilevel.space, bilevel.module, 4, 0, 2, 10**6, share=share)
        losses, _, gradient = gradient_by_tape(
            bilevel.writer, bilevel.tape, bilevel.parallel, theta, stream[0], *views
        )
        stream.close()
        return np.mean(losses), gradient

    whole, first, second = found((0, 1)), found((0, 2)), found((1, 2))
    assert first[0] != second[0]
    for part, other, all_of_them in zip(*map(jax.tree.leaves, (first, second, whole)), strict=True):
        error = np.linalg.norm((part + other) / 2 - all_of_them)
        assert error < 1e-5 * np.linalg.norm(all_of_them)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"train__spread": "rows"}, ("'rows'", "images, architectures")),
        (
            {"train__spread": "architectures", "train__meta_batch": 4},
            ("config.train.meta_batch=4", "3 processes", "multiple of 3"),
        ),
    ],
    ids=["unknown", "not divisible"],
)
def test_what_processes_cannot_share_ends_in_one_sentence(make_config, options, words):
    three = SimpleNamespace(process=(0, 3))
    with pytest.raises(UsageError) as caught:
        setup.make_bilevel(make_config(**options), three)
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message


def test_one_process_has_all_architectures_of_a_step(make_config):
    one = Parallel(jax.devices()[:2])
    bilevel = setup.make_bilevel(make_config(train__spread="architectures"), one)
    assert bilevel.parallel is bilevel.world is one and bilevel.share == (0, 1)


@pytest.mark.parametrize(
    "devices, part", [(1, False), (1, True), (4, False)], ids=["1", "1 of several", "4"]
)
def test_nothing_is_compiled_twice(make_config, caplog, monkeypatch, devices, part):
    """Warm-up must use arrays that lie where those of training do, and so must every step."""
    config = make_config(
        train__warm_up_networks=2, train__warm_up_signatures=100, optim__warmup_steps=0
    )
    bilevel = setup.make_bilevel(config, Parallel(jax.devices()[:devices], part))
    monkeypatch.setattr(setup.compilation_cache, "in_use", lambda: None)
    setup.warm_up(bilevel, Console(file=io.StringIO()))
    known = set(bilevel.tape.compiled)
    optimizer, _ = optim.create(
        train_lib.ml_collections.ConfigDict({**config.optim, "total_steps": 6})
    )
    key = jax.random.key(0)
    start = state.create(init_theta(bilevel.module, key)["params"], optimizer)
    current = bilevel.parallel.replicate(start)
    # Architectures 0 and 1 in every combination, so that groups of tensors are filled differently.
    stream = ArchitectureStream(bilevel.space, bilevel.module, 2, 0, 2, 10**6)
    assert len({stream.indices(step) for step in range(6)}) >= 3
    step = train_lib.make_step(bilevel, optimizer, stream, key)
    batch = {"image": np.random.default_rng(0).normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)}
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        for number in range(6):
            current, _ = step(current, number, batch)
    stream.close()
    assert set(bilevel.tape.compiled) == known
    assert {f._cache_size() for pair in bilevel.tape.compiled.values() for f in pair} == {1}
    compiling = [
        r.getMessage().split(" Argument mapping")[0]
        for r in caplog.records
        if r.getMessage().startswith("Compiling jit(_pull_group)")
    ]
    caplog.clear()
    # Where arrays are committed, the sum that starts from zeros and those that go on are two
    # functions.
    assert compiling and len(compiling) <= len(set(compiling)) + (devices > 1 or part)


def test_what_the_cache_holds_is_not_compiled_ahead_again(make_config, monkeypatch, tmp_path):
    monkeypatch.setattr(setup.compilation_cache, "in_use", lambda: tmp_path)
    (entry := tmp_path / "block-cache").touch()
    options = {"train__warm_up_networks": 1, "train__warm_up_signatures": 2}

    def warmed_up(**changes):
        config = make_config(**{**options, **changes})
        bilevel = setup.make_bilevel(config, Parallel(jax.devices()[:1]))
        shown = io.StringIO()
        setup.warm_up(bilevel, Console(file=shown))
        return len(bilevel.tape.compiled), shown.getvalue()

    assert warmed_up()[0] == 2
    assert warmed_up() == (0, "Compiled operations are in the cache and load when they are met.\n")
    # Others are wanted, or the same compile to something else.
    assert warmed_up(train__warm_up_signatures=1)[0] == 1
    assert warmed_up(train__bn_group=8)[0] == 2
    monkeypatch.setattr(setup, "source_digest", lambda: "another version")
    assert warmed_up()[0] == 2
    # What was kept is gone.
    entry.unlink()
    assert warmed_up()[0] == 2
