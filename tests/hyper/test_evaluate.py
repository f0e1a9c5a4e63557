"""The evaluate stage on tiny networks and images, whole and resumed."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console
from tiny_evaluate import SIZE, images, tiny

from medinit_jax.core.errors import UsageError
from medinit_jax.core.parallel import Parallel
from medinit_jax.core.workdir import write_json
from medinit_jax.downstream import classify
from medinit_jax.downstream.protocol import STARTS
from medinit_jax.hyper import comparison, diagnostics
from medinit_jax.hyper import evaluate as stage
from medinit_jax.hyper.hypernetwork import init_theta
from medinit_jax.hyper.publish import publish
from medinit_jax.hyper.rotation import held_out_views, names_of, rotation_accuracy
from medinit_jax.hyper.setup import make_bilevel, open_sources
from medinit_jax.report import write_report


def config_of(path):
    augment = {"zoom": (0.8, 1.2), "translate": 0.2, "tilt": 10.0, "rotate": 0.0, "mirror": 0.5}
    augment |= {"flip": 0.0, "border": "zero", "normalize_laterality": True}
    augment |= {"difficulty": {"start": 1.0, "end": 1.0, "steps": 0}}
    data = {"source": "npz", "name": "", "path": str(path), "size": SIZE, "fit": "crop"}
    data |= {"images_key": "auto", "labels_key": "auto", "normalization": "gray", "batch": 8}
    train = {"batch_size": 8, "bn_group": 8, "meta_batch": 2, "penalty": 0.0, "dtype": "float32"}
    train["spread"] = "images"
    hyper = {"hidden": 8, "max_shape": (8, 8, 3, 3)}
    downstream = {
        "networks": ("test:0",),
        "label": "any",
        "images": {"train": 0, "val": 0, "test": 0},
        "fractions": (0.5, 1.0),
        "lr_fractions": (0.5,),
        "learning_rates": (0.01, 0.1),
        "seeds": 2,
        "grid_seeds": 1,
        "probe_depths": (0.5, 1.0),
        "depth_fraction": 1.0,
        "init_noise": 0.0,
        "kinds": ("kernel", "scale", "bias", "embedding"),
        "orthogonal": False,
        "deviation": "predicted",
        "judge": "test",
        "starts": ("hyper", "random", "matched", "untrained"),
        "rotnet": {"images": 8, "epochs": 1, "learning_rate": 0.01},
        "finetune": True,
        "finetune_fractions": (),
        "budget": {"epochs": 2, "batch": 8},
    }
    evaluation = {"splits": {"val": 2, "deep": 1}, "resnets": ("resnet18",), "batches": 2}
    evaluation |= {"initializer": ""}
    evaluation |= {"diagnostics": {"networks": 2, "images": 12, "depths": (0.5, 1.0)}}
    return ConfigDict(
        {
            "seed": 5,
            "note": "a note",
            "space": "small",
            "data": data | {"augment": augment},
            "pretext": {
                "name": "rotation",
                "mode": "four",
                "circle": True,
                "label_smoothing": 0.0,
                "weights": {},
                "width": 32,
            },
            "hyper": hyper,
            "train": train | {"steps": 1},
            "evaluate": evaluation | {"ridge_images": 16, "downstream": downstream},
        }
    )


@pytest.fixture(scope="module")
def bilevel(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "toy.npz"
    images(path)
    return make_bilevel(config_of(path), Parallel(jax.devices()[:1]))


@pytest.fixture
def workdir(tmp_path, bilevel, monkeypatch):
    monkeypatch.setattr(stage, "by_name", tiny)
    monkeypatch.setattr(comparison, "by_name", tiny)
    monkeypatch.setattr(diagnostics, "by_name", tiny)
    theta = init_theta(bilevel.module, jax.random.key(77))["params"]
    publish(bilevel.config, tmp_path, bilevel.module, jax.device_get(theta), {})
    write_json(tmp_path / "train.json", {"steps": 1, "takeoff_step": None})
    write_json(tmp_path / "config.json", {"name": "toy", "config": {}})
    return tmp_path


def quiet():
    return Console(quiet=True)


def test_writes_everything_and_a_second_run_computes_nothing(workdir, bilevel, monkeypatch):
    summary = stage.evaluate(bilevel.config, workdir, quiet(), "the command", bilevel)
    assert json.loads((workdir / "summary.json").read_text()) == json.loads(json.dumps(summary))
    rotation = summary["rotation_accuracy"]
    assert set(rotation) == {"ridge", "chance", "val", "deep", "resnets"}
    for part, count in (("val", 2), ("deep", 1), ("resnets", 1)):
        figures = rotation[part]
        assert figures["n"] == len(figures["per_network"]) == count
        assert figures["images"] == 16 and 0 <= figures["untrained_mean"] <= 1
        assert figures["mean"] == pytest.approx(np.mean(figures["per_network"]))
        assert not figures["not_finite"]
    assert rotation["chance"] == 0.25 and 0 <= rotation["ridge"] <= 1

    assert [(e["fraction"], e["start"]) for e in summary["finetune"]] == [
        (fraction, start) for fraction in (0.5, 1.0) for start in STARTS
    ]
    rates = {(e["fraction"], e["start"]): e["learning_rate"] for e in summary["finetune"]}
    for entry in summary["finetune"]:
        assert len(entry["seeds"]) == 2 and len(entry["mean"]) == 2
        # The rate is searched at 50 % and used again.
        assert entry["learning_rate"] == rates[0.5, entry["start"]]
        assert entry["learning_rate_from"] == 0.5
    assert len(summary["probe"]) == 2 * len(STARTS) * 2
    assert {e["depth"] for e in summary["probe"]} == {0.5, 1.0}
    seen = summary["diagnostics"]
    assert seen["networks"] == ["test:0", "test:1"] and seen["families"] == ["cells", "cells"]
    for start in ("hyper", "random", "matched"):
        ranks = np.array(seen["effective_rank"][start])
        # A network of four channels.
        assert ranks.shape == (2, 2) and (ranks >= 0).all() and (ranks <= 4.001).all()
        assert 0 <= seen["cka"][start] <= 1
    assert len(seen["twin_distance"]) == 2 and rotation["val"]["families"] == ["cells", "cells"]
    assert summary["train"]["steps"] == 1 and summary["notes"][0] == "a note"
    assert summary["notes"][1].startswith("All tensors of a fine-tuned network take predicted")
    origin = summary["provenance"]
    assert origin["command"] == "the command" and origin["config_name"] == "toy"
    assert origin["images"]["count"] == 40 and len(origin["theta_sha256"]) == 64

    with np.load(workdir / "samples.npz") as samples:
        assert samples["images"].shape == (6, SIZE, SIZE, 3)
        assert samples["views"].shape == (6, 4, SIZE, SIZE, 3)
        assert samples["targets"].tolist() == [[0, 1, 2, 3]] * 6
    tensors = json.loads((workdir / "parameters.json").read_text())["test:0"]
    body = next(t for t in tensors if t["name"] == "stem.conv.kernel")
    assert body["shape"] == [3, 3, 3, 4]
    assert body["hyper"]["std"] == pytest.approx(body["matched"]["std"])
    assert write_report(workdir).is_file()

    def forbidden(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(classify, "fine_tune", forbidden)
    monkeypatch.setattr(comparison, "probe_auc", forbidden)
    monkeypatch.setattr(stage, "score", forbidden)
    monkeypatch.setattr(stage, "ridge_figure", forbidden)
    monkeypatch.setattr(stage, "diagnose", forbidden)
    again = stage.evaluate(bilevel.config, workdir, quiet(), "the command", bilevel)
    assert again["finetune"] == summary["finetune"] and again["probe"] == summary["probe"]
    # What was found under other rules is not taken for this.
    other = bilevel.config.copy_and_resolve_references()
    other.evaluate.downstream.budget.epochs = 3
    with pytest.raises(AssertionError, match="computed again"):
        stage.evaluate(other, workdir, quiet(), "", bilevel)


def test_another_initializer_by_probe_alone_and_the_network_pretrained_alone(
    workdir, bilevel, tmp_path, monkeypatch
):
    trained = []
    original = classify.train

    def counted(network, *rest):
        trained.append(network.program.num_classes)
        return original(network, *rest)

    monkeypatch.setattr(classify, "train", counted)
    config = bilevel.config.copy_and_resolve_references()
    evaluation, settings = config.evaluate, config.evaluate.downstream
    evaluation.initializer = str(workdir)
    evaluation.splits, evaluation.resnets = ConfigDict({"val": 0}), ()
    evaluation.diagnostics.networks = 0
    settings.starts, settings.finetune = ("hyper", "random", "rotnet"), False
    settings.fractions, settings.judge = (1.0,), "val"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    summary = stage.evaluate(config, elsewhere, quiet(), "", bilevel._replace(config=config))
    assert summary["rotation_accuracy"] == summary["diagnostics"] == {}
    assert summary["finetune"] == []
    found = {(e["start"], e["depth"]): e["mean"] for e in summary["probe"]}
    assert set(found) == {(s, d) for s in settings.starts for d in (0.5, 1.0)}
    # Trained once, to tell four angles, and used for both seeds.
    assert trained == [4]


def test_shares_of_fine_tuning_are_among_those_compared(bilevel):
    settings = bilevel.config.evaluate.downstream.copy_and_resolve_references()
    assert comparison.finetuned(settings) == (0.5, 1.0)
    both = comparison.count_runs(settings)
    settings.finetune_fractions = (0.5,)
    # One share less for four starts and two seeds.
    assert comparison.count_runs(settings) == both - 8
    settings.finetune_fractions = (0.3,)
    with pytest.raises(UsageError, match=r"finetune_fractions names 0\.3"):
        comparison.finetuned(settings)


def test_images_without_labels_leave_the_comparison_out(workdir, bilevel, tmp_path):
    path = tmp_path / "unlabeled.npz"
    images(path, labels=False)
    config = config_of(path)
    summary = stage.evaluate(config, workdir, quiet(), "", bilevel._replace(config=config))
    assert summary["finetune"] == summary["probe"] == []
    assert "no labels" in summary["notes"][-1]
    assert summary["rotation_accuracy"]["val"]["n"] == 2


def test_networks_that_overflow_count_as_chance_and_are_named(bilevel):
    views = held_out_views(bilevel, open_sources(bilevel.config, quiet())["test"], 2)
    theta = init_theta(bilevel.module, jax.random.key(1))["params"]
    broken = jax.tree.map(lambda x: x * np.nan, theta)
    programs = {"a": tiny("val:0", 4, None).program}
    found = rotation_accuracy(bilevel, broken, programs, views)
    assert found["per_network"] == [0.25] and found["not_finite"] == ["a"]
    assert found["share_below_035"] == 1.0
    assert rotation_accuracy(bilevel, theta, programs, views)["not_finite"] == []


def test_four_devices_score_as_one_does(bilevel):
    config = config_of(bilevel.config.data.path)
    config.train.bn_group = 2
    theta = init_theta(bilevel.module, jax.random.key(1))["params"]
    programs = {"a": tiny("val:0", 4, None).program}
    figures = []
    for count in (1, 4):
        own = make_bilevel(config, Parallel(jax.devices()[:count]))
        views = held_out_views(own, open_sources(config, quiet())["test"], 2)
        figures.append(rotation_accuracy(own, theta, programs, views)["per_network"])
    assert figures[0] == pytest.approx(figures[1])


def test_views_show_every_image_once(bilevel):
    source = open_sources(bilevel.config, quiet())["test"]
    views = held_out_views(bilevel, source, 100)
    assert len(views.batches) == 3 and len(set(views.indices.tolist())) == 24
    assert views.batches[0][0].shape == (8, SIZE, SIZE, 3)


def test_names_are_the_first_indices_of_every_split():
    found = names_of({"val": 2, "wide": 0, "deep": 9}, lambda split: 3, ("resnet18",))
    assert found == {
        "val": ["val:0", "val:1"],
        "deep": ["deep:0", "deep:1", "deep:2"],
        "resnets": ["resnet18"],
    }


def test_a_workdir_without_initializer_says_what_to_run(tmp_path, bilevel):
    with pytest.raises(UsageError, match="stage train"):
        stage.evaluate(bilevel.config, tmp_path, quiet())
