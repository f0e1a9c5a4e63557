"""Cards of initializers: figures by hand, what is left out, and the command that packs them."""

import json
import zipfile

import jax
import pytest

import medinit_jax
from medinit_jax import release
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import save_params
from medinit_jax.core.provenance import fingerprint
from medinit_jax.hyper.hypernetwork import HyperInitializer, init_theta
from medinit_jax.report.initializer_card import card, markdown

METADATA = {
    "hyper": {"hidden": 8, "max_shape": [8, 8, 3, 3]},
    "code_version": "0.1.0 (abc)",
    "modality": "fundus",
    "preprocessing": {
        "size": 32,
        "mean": [0.3, 0.2, 0.1],
        "std": [0.3, 0.2, 0.2],
        "channels": "RGB",
        "range": "0..1 before mean and std",
    },
}


def entry(start, *finals):
    seeds = [{"auc_per_epoch": [0.5, final]} for final in finals]
    return {
        "network": "test:0", "fraction": 0.1, "start": start, "learning_rate": 0.05,
        "seeds": seeds,
    }  # fmt: skip


@pytest.fixture(scope="module")
def theta():
    module = HyperInitializer(hidden=8, max_shape=(8, 8, 3, 3))
    return jax.device_get(init_theta(module, jax.random.key(2))["params"])


@pytest.fixture
def run(tmp_path, made_up, theta):
    """A workdir whose figures are known."""
    found = made_up.summary()
    found["rotation_accuracy"] = {
        "ridge": 0.4, "chance": 0.25,
        "val": {"mean": 0.9, "n": 3, "untrained_mean": 0.25, "per_network": [0.8, 0.9, 1.0]},
        "wide": {"mean": None, "n": 0, "untrained_mean": None, "per_network": []},
    }  # fmt: skip
    found["finetune"] = [entry("hyper", 0.8, 0.9, 1.0), entry("random", 0.7, 0.8, 0.9)]
    found["notes"] = ["The images are fundus phantoms."]
    found["provenance"]["theta_sha256"] = fingerprint(theta)
    found["provenance"]["command"] = (
        "/home/me/medinit_jax/main.py --config=configs/hyper.py --workdir=/home/me/runs "
        "--config.seed=3 --config.data.data_dir=/home/me/data"
    )
    workdir = made_up.write(tmp_path / "run", found)
    config = {
        "seed": 3,
        "cache_dir": "/home/me/c",
        "data": {"source": "phantom", "data_dir": "/home/me/data", "path": "", "size": 32},
    }
    (workdir / "config.json").write_text(json.dumps({"name": "hyper", "config": config}))
    (workdir / "train.json").write_text(json.dumps(found["train"]))
    save_params(workdir / "initializer", theta, METADATA)
    return workdir


def test_figures_and_intervals(run, theta):
    found = card(run, METADATA, fingerprint(theta), "drawn")
    (row,) = found["rotation_accuracy"]["splits"].values()
    # Student's quantile with two degrees of freedom is 4.302653; deviation 0.1, three values.
    half = 4.302653 * 0.1 / 3**0.5
    assert row["networks"] == 3 and row["mean"] == pytest.approx(0.9)
    assert row["interval"] == pytest.approx([0.9 - half, 0.9 + half])
    hyper, random = found["fine_tuning"]
    assert (hyper["seeds"], hyper["mean"]) == (3, pytest.approx(0.9))
    assert random["interval"] == pytest.approx([0.8 - half, 0.8 + half])
    (difference,) = found["differences"]
    assert difference["over"] == "random" and difference["mean"] == pytest.approx(0.1)
    assert difference["interval"] == pytest.approx([0.1, 0.1])
    assert found["training"]["images"] == 6000 and found["training"]["architectures"] == 8400


def test_one_seed_has_no_interval_and_none_no_table(run, theta):
    summary = json.loads((run / "summary.json").read_text())
    summary["finetune"] = [entry("hyper", 0.8), entry("random", 0.7)]
    (run / "summary.json").write_text(json.dumps(summary))
    found = card(run, METADATA, fingerprint(theta), "drawn")
    assert [row["interval"] for row in found["fine_tuning"]] == [None, None]
    assert found["differences"][0]["interval"] is None
    assert "nothing can be claimed" in markdown(found)
    summary["finetune"] = []
    (run / "summary.json").write_text(json.dumps(summary))
    assert "Not measured by this run." in markdown(card(run, METADATA, fingerprint(theta), "d"))


def test_places_of_files_are_left_out(run, theta):
    found = card(run, METADATA, fingerprint(theta), "drawn")
    assert "/home/me" not in json.dumps(found) + markdown(found)
    wanted = "python -m medinit_jax.main --config=configs/hyper.py --config.seed=3"
    assert found["training"]["command"] == wanted
    assert found["training"]["config"] == {"seed": 3, "data": {"source": "phantom", "size": 32}}


def test_labels_that_training_saw_are_told_and_rotation_that_was_not_asked_is_left_out(run, theta):
    held = json.loads((run / "config.json").read_text())
    held["config"]["pretext"] = {"name": "weak_labels+patches", "patches": {"scheme": "all"}}
    held["config"]["train"] = {"select": "probe"}
    (run / "config.json").write_text(json.dumps(held))
    summary = json.loads((run / "summary.json").read_text())
    summary["rotation_accuracy"] = {}
    (run / "summary.json").write_text(json.dumps(summary))
    text = markdown(card(run, METADATA, fingerprint(theta), "drawn"))
    assert "without labels" not in text and "four right angles" not in text
    for key in ("name=weak_labels", "patches.scheme=all"):
        assert f"config.pretext.{key}" in text
    assert "config.train.select=probe" in text


def test_people_read_the_same_figures(run, theta):
    text = markdown(card(run, METADATA, fingerprint(theta), "drawn"))
    for part in (
        "Trained on 6000 drawn fundus images, without labels.",
        "chance 0.250, **ridge regression on thumbnails 0.400**",
        "| `val` | 3 | 0.900 | 0.652 to 1.148 | 0.250 |",
        "| `test:0` | 10\u00a0% | the hyper-initializer | 0.05 | 3 | 0.900 | 0.652 to 1.148 |",
        "- over random initialization: +0.100, 95 % interval +0.100 to +0.100",
        'initializer = medinit_jax.load("drawn")',
        "it never saw a photograph of a patient",
        "The images are fundus phantoms.",
    ):
        assert part in text


def test_the_command_packs_installs_and_loads(run, theta, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDINIT_CACHE_DIR", str(tmp_path / "cache"))
    out = tmp_path / "dist"
    assert release.main(["build", str(run), "--name=drawn", f"--out={out}"]) == 0
    archive = out / f"drawn-{medinit_jax.__version__}.zip"
    assert str(archive) in capsys.readouterr().out
    assert release.main(["install", str(archive)]) == 0
    assert 'medinit_jax.load("drawn")' in capsys.readouterr().out
    assert medinit_jax.load("drawn", modality="fundus").fingerprint == fingerprint(theta)
    with zipfile.ZipFile(archive) as packed:
        assert json.loads(packed.read("drawn/card.json"))["name"] == "drawn"


def test_what_is_missing_is_named(run, theta, tmp_path, capsys):
    with pytest.raises(UsageError, match="tells of another initializer; run the stage evaluate"):
        card(run, METADATA, "0" * 64, "drawn")
    (run / "train.json").write_text("{")
    with pytest.raises(UsageError, match="train.json cannot be read"):
        card(run, METADATA, fingerprint(theta), "drawn")
    (run / "summary.json").unlink()
    assert release.main(["build", str(run), "--name=d", f"--out={tmp_path}"]) == 2
    assert "run its stage evaluate first" in capsys.readouterr().err
    assert release.main(["build", str(tmp_path / "no"), "--name=d", f"--out={tmp_path}"]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert release.main(["install", str(tmp_path / "no.zip")]) == 2
