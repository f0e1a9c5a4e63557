"""Route 1 over two processes of two devices each: it does what one device does."""

import io
import json

import jax
import numpy as np
import pytest
from processes import begin, flags_of, free_port, needs_gloo, outcome
from rich.console import Console
from tiny_evaluate import images
from tiny_hyper import CONFIG, SIZE, TINY

from medinit_jax.arch import space
from medinit_jax.core.config import read_command_line
from medinit_jax.core.parallel import Parallel
from medinit_jax.core.parameters import load_params
from medinit_jax.core.workdir import claim_workdir, write_json
from medinit_jax.hyper import setup, train
from medinit_jax.hyper.hypernetwork import init_theta
from medinit_jax.hyper.publish import publish

STEPS = 20
SCRIPT = """
    import sys
    from medinit_jax.arch import space
    from medinit_jax.main import main
    from tiny_hyper import TINY
    space.SPACES["tiny"] = TINY
    sys.exit(main(["test", *sys.argv[1:]]))
"""
# The networks of TINY are slow to compile; these are enough to be judged.
EVALUATE = """
    import sys
    from tiny_evaluate import tiny
    from medinit_jax.hyper import comparison, diagnostics, evaluate
    from medinit_jax.main import main
    for room in (comparison, diagnostics, evaluate):
        room.by_name = tiny
    sys.exit(main(["test", *sys.argv[1:]]))
"""


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def curve(workdir):
    return [line["train/loss"] for line in lines_of(workdir) if "train/loss" in line]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Function (settings) -> a command line that trains on noise with labels."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    rng = np.random.default_rng(0)
    splits = ("train", "val", "test")
    arrays = {
        f"{split}_images": rng.integers(0, 256, (16, SIZE, SIZE), np.uint8) for split in splits
    }
    arrays |= {f"{split}_labels": rng.integers(0, 2, 16) for split in splits}
    np.savez(path, **arrays)

    def make(**options):
        settings = {
            "space": "tiny", "data.source": "npz", "data.path": path, "data.size": SIZE,
            "hyper.hidden": 8, "hyper.max_shape": (8, 8, 5, 5), "train.batch_size": 16,
            "train.bn_group": 4, "train.first_architectures": 2, "train.double_every": 10**6,
            "train.steps": STEPS, "train.log_every": 1, "train.checkpoint_every": 10,
            "optim.learning_rate": 0.0001, "stages": "train", "train.warm_up_signatures": 0,
            "pretext.name": "rotation", "pretext.mode": "four", "train.select": "last",
            "train.trials": 1,
        }  # fmt: skip
        settings |= {name.replace("__", "."): value for name, value in options.items()}
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        return [f"--config={CONFIG}:smoke", *flags]

    return make


def run(command, folder, processes=2, **options):
    port = free_port()
    own = [flags_of(rank, port) if processes > 1 else () for rank in range(processes)]
    command = [*command, f"--workdir={folder}"]
    outputs = outcome([begin(SCRIPT, [*command, *flags], **options) for flags in own])
    assert [code for code, *_ in outputs] == [0] * processes, outputs


@needs_gloo
@pytest.mark.parametrize(
    ("spread", "pretext", "select", "steps"),
    [
        ("images", "rotation", "last", STEPS),
        # Labels to share, learned heads, and as many images for each as it asks for.
        pytest.param("images", "weak_labels+contrast", "last", 4, marks=pytest.mark.slow),
        # The first process probes, and the others wait.
        pytest.param("images", "rotation", "probe", STEPS, marks=pytest.mark.slow),
        pytest.param("architectures", "rotation", "probe", STEPS, marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one_device_does(
    command, tmp_path, monkeypatch, spread, pretext, select, steps
):
    """Where architectures are spread, each device also has a part of the moments."""
    monkeypatch.setitem(space.SPACES, "tiny", TINY)
    two, one = tmp_path / "two", tmp_path / "one"
    settings = command(
        train__spread=spread, train__steps=steps, train__select=select, pretext__name=pretext,
        optim__sharded=spread == "architectures",
    )  # fmt: skip
    run(settings, two)
    one.mkdir()
    config = read_command_line(["test", *settings]).config
    bilevel = setup.make_bilevel(config, Parallel(jax.devices()[:1]))
    train.train(config, one, Console(file=io.StringIO()), bilevel=bilevel)
    found, wanted = curve(two), curve(one)
    assert len(wanted) == steps and len(set(wanted)) == steps
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    # What rounding decides otherwise grows from step to step, on some processors to 1e-4.
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    trees = [load_params(folder / "initializer")[0] for folder in (one, two)]
    for mine, its in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-3)
    told = [json.loads((folder / "train.json").read_text()) for folder in (one, two)]
    assert told[1]["steps"] == steps
    assert told[0].get("published_step") == told[1].get("published_step")
    assert ("published_step" in told[1]) == (select == "probe")
    scores = [
        {k: v for line in lines_of(folder) for k, v in line.items() if k.startswith("val/")}
        for folder in (one, two)
    ]
    assert scores[0].keys() == scores[1].keys() and scores[0]
    for name, value in scores[0].items():
        # One of 16 views, at the most, is judged otherwise by rounding.
        assert scores[1][name] == pytest.approx(value, abs=0.07), name


def judged(workdir):
    """What an evaluation leaves, but for the moment and the machine."""
    summary = json.loads((workdir / "summary.json").read_text())
    for key in ("command", "date", "device"):
        del summary["provenance"][key]
    ledger = json.loads((workdir / "evaluation.json").read_text())
    files = {name: (workdir / name).read_bytes() for name in ("parameters.json", "samples.npz")}
    return json.dumps(summary, sort_keys=True), ledger, files


@pytest.mark.slow
@needs_gloo
def test_two_processes_judge_as_one_does(tmp_path):
    images(tmp_path / "images.npz")
    settings = {
        "data.source": "npz", "data.path": tmp_path / "images.npz", "data.size": SIZE,
        "hyper.hidden": 8, "hyper.max_shape": (8, 8, 3, 3), "train.batch_size": 8,
        "train.bn_group": 4, "train.meta_batch": 2, "evaluate.splits.val": 3,
        "evaluate.diagnostics.networks": 1, "evaluate.downstream.seeds": 2,
        "evaluate.downstream.learning_rates": (0.01, 0.1),
        "evaluate.downstream.starts": ("hyper", "random"), "stages": "evaluate,report",
    }  # fmt: skip
    command = [f"--config={CONFIG}:smoke"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    config = read_command_line(["test", *command]).config
    bilevel = setup.make_bilevel(config, Parallel(jax.devices()[:1]))
    theta = init_theta(bilevel.module, jax.random.key(77))["params"]
    one, two = tmp_path / "one", tmp_path / "two"
    for workdir in (one, two):
        claim_workdir(workdir, config, "hyper")
        publish(config, workdir, bilevel.module, jax.device_get(theta), {})
        write_json(workdir / "train.json", {"steps": 1, "takeoff_step": None})
    port = free_port()
    started = [begin(EVALUATE, [*command, f"--workdir={one}"])]
    started += [
        begin(EVALUATE, [*command, f"--workdir={two}", *flags_of(rank, port)]) for rank in range(2)
    ]
    outputs = outcome(started)
    assert [code for code, *_ in outputs] == [0, 0, 0], outputs
    found, wanted = judged(two), judged(one)
    assert found == wanted
    summary = json.loads(found[0])
    assert summary["rotation_accuracy"]["val"]["n"] == 3 and len(summary["finetune"]) == 2
    assert {file.name for file in two.iterdir()} == {file.name for file in one.iterdir()}


@needs_gloo
@pytest.mark.slow
@pytest.mark.parametrize(
    "devices, pretext, dtype, tolerance",
    [(2, "rotation", "float64", 1e-8), (1, "hard_rotation+contrast", "float32", 1e-5)],
    ids=["float64", "several pretexts, one device each"],
)
def test_spread_architectures_train_as_all_of_them(
    command, tmp_path, devices, pretext, dtype, tolerance
):
    settings = command(
        pretext__name=pretext, train__dtype=dtype, train__meta_batch=4, train__steps=3,
        train__spread="architectures", train__validate_every=3, train__validation_networks=1,
    )  # fmt: skip
    wide = {"JAX_ENABLE_X64": str(int(dtype == "float64"))}
    lines = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        run(settings, folder, count, devices=devices if count > 1 else 1, **wide)
        lines.append(lines_of(folder))
    keys = ["train/loss", "train/grad_norm", "val/accuracy"]
    if pretext != "rotation":
        keys += ["train/loss/contrast", "val/score/contrast"]
    for key in keys:
        wanted, found = ([line[key] for line in part if key in line] for part in lines)
        assert len(wanted) == (1 if key.startswith("val") else 3), key
        np.testing.assert_allclose(found, wanted, rtol=tolerance, err_msg=key)
