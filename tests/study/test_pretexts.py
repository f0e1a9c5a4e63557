"""The plan of the study of pretexts, and its run with jobs that only leave their figures."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import CONFIG_FILE, write_json
from medinit_jax.study.pretext_conduct import conduct_pretexts
from medinit_jax.study.pretexts import Pair, PretextPlan
from medinit_jax.study.session import joined

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "study.py"


def config(tmp_path, **options):
    settings = {"jobs_dir": tmp_path / "jobs"} | {
        name.replace("__", "."): value for name, value in options.items()
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    return read_command_line(["test", f"--config={CONFIG}:pretexts", *flags]).config


def test_recipes_share_a_training_and_phases_share_nothing(tmp_path):
    plan = PretextPlan(config(tmp_path, size="phantom"))
    assert len(plan.pairs) == 3 * 9 * 6
    choose = plan.jobs("choose", plan.pairs, tmp_path)
    assert len(choose) == 27 + len(plan.pairs)
    confirm = plan.jobs("confirm", plan.pairs[:1], tmp_path)
    assert len(confirm) == 6 and not {job.id for job in choose} & {job.id for job in confirm}
    known = set()
    for job in choose + confirm:
        assert set(job.needs) <= known
        known.add(job.id)
    networks = {phase: set(plan.size.networks[phase]) for phase in ("choose", "confirm")}
    assert not networks["choose"] & networks["confirm"] and len(networks["confirm"]) >= 10
    one = plan.evaluation("choose", Pair("fundus", "contrast", "scaled"), 1111).config
    assert one["pretext"]["name"] == "contrast" and one["train"]["select"] == "probe"
    downstream = one["evaluate"]["downstream"]
    assert downstream["deviation"] == "default" and downstream["judge"] == "val"
    assert not downstream["finetune"] and not any(one["evaluate"]["splits"].values())
    other = plan.evaluation("choose", Pair("xray", "contrast", "whole"), 1111).config
    assert other["data"]["name"] == "xray" and not other["data"]["augment"]["normalize_laterality"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "huge"}, "config.size='huge'"),
        ({"last": "report"}, "config.last='report'"),
        ({"sizes__mini__networks__choose": ("test:1",)}, "test:1 is in both"),
    ],
    ids=str,
)
def test_a_plan_that_means_nothing(tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        PretextPlan(config(tmp_path, **options))


def test_real_images_have_to_be_named(tmp_path):
    plan = PretextPlan(config(tmp_path, size="real"))
    with pytest.raises(UsageError, match=r"config\.images\.fundus"):
        plan.jobs("choose", plan.pairs, tmp_path)


def test_every_setting_of_a_modality_and_of_a_phase_can_be_given(tmp_path):
    options = {
        "size": "real", "images.xray": tmp_path / "images.npz",
        "sizes.real.modalities": ("xray",), "sizes.real.pretexts": ("jigsaw",),
        "sizes.real.recipes": ("whole",), "sizes.real.hyper.train.steps": 600,
        "sizes.real.hyper_of.xray.data.size": 28, "sizes.real.hyper_of.xray.train.batch_size": 64,
        "sizes.real.downstream.choose.budget.epochs": 2,
    }  # fmt: skip
    plan = PretextPlan(config(tmp_path, **options))
    (pair,) = plan.pairs
    training = plan.training(pair, 1111).config
    assert training["data"]["source"] == "files" and training["data"]["path"].endswith("images.npz")
    assert (training["data"]["size"], training["train"]["steps"]) == (28, 600)
    assert training["train"]["batch_size"] == 64 and training["optim"]["warmup_steps"] == 50
    found = {
        phase: plan.evaluation(phase, pair, 1111).config["evaluate"]["downstream"]
        for phase in ("choose", "confirm")
    }
    assert [found[phase]["budget"]["epochs"] for phase in found] == [2, 20]
    assert [found[phase]["judge"] for phase in found] == ["val", "test"]
    # A folder's images lie by class: the first ones would be of one class.
    assert all(set(one["images"].values()) == {0} for one in found.values())


def leave(job, jobs_dir):
    """A job's remains: the contrast pretext is better, half of the tensors the best."""
    folder = job.folder(jobs_dir)
    (folder / "initializer").mkdir(parents=True)
    resolved = job.resolved(jobs_dir).to_dict()
    write_json(folder / CONFIG_FILE, {"name": job.name, "config": json.loads(json.dumps(resolved))})
    write_json(folder / "initializer" / "initializer.json", {})
    if job.facts["role"] == "initializer":
        return
    if job.facts["pretext"] == "rotation" and job.facts["recipe"] == "half":
        raise UsageError("The pretext rotation has collapsed.")
    gain = 0.1 * (job.facts["pretext"] == "contrast") + 0.05 * (job.facts["recipe"] == "half")
    probe = [
        {"network": network, "fraction": fraction, "start": start, "depth": 1.0,
         "mean": 0.6 + gain * (start == "hyper")}
        for network in job.config["evaluate"]["downstream"]["networks"]
        for fraction in (0.05, 0.2)
        for start in job.config["evaluate"]["downstream"]["starts"]
    ]  # fmt: skip
    write_json(folder / "summary.json", {"probe": probe, "finetune": [], "diagnostics": {}})


def conducted(made, workdir, console, run):
    with joined(workdir, Path(made.jobs_dir), lambda begins: None, console) as session:
        conduct_pretexts(made, workdir, console, run, session)
    return json.loads((workdir / "summary.json").read_text())


def test_what_was_chosen_is_confirmed_and_what_collapsed_is_named(tmp_path):
    made = config(tmp_path)
    workdir = tmp_path / "study"
    workdir.mkdir()
    shown = io.StringIO()
    summary = conducted(made, workdir, Console(file=shown, width=200), leave)
    assert summary["chosen"] == {
        "fundus": {"modality": "fundus", "pretext": "contrast", "recipe": "half"}
    }
    assert summary["networks"] == ["test:0", "test:1"] and summary["hypernetwork_seeds"] == 2
    assert summary["probe_gain_over_matched"] == pytest.approx({"0.05": 0.15, "0.2": 0.15})
    assert summary["probe_wins_over_rotnet"] == {"0.05": 2, "0.2": 2}
    assert summary["jobs_failed"] == 1 and "command" in summary
    assert summary["provenance"]["code_version"]
    assert "Not judged: fundus rotation half" in shown.getvalue()
    listing = json.loads((workdir / "jobs.json").read_text())
    assert "collapsed" in next(row["reason"] for row in listing if row["status"] == "failed")
    page = (workdir / "report.html").read_text()
    assert "contrast" in page and "+0.150" in page and "2 of 2" in page
    # Another run finds all there.
    again = conducted(made, workdir, Console(file=shown, width=200), None)
    assert again["probe_gain_over_matched"] == summary["probe_gain_over_matched"]


def test_runs_without_figures_choose_nothing(tmp_path):
    def silent(job, jobs_dir):
        leave(job, jobs_dir)
        if job.facts["role"] != "initializer":
            write_json(job.folder(jobs_dir) / "summary.json", {"probe": [], "finetune": []})

    made = config(tmp_path, sizes__mini__pretexts=("contrast",))
    workdir = tmp_path / "study"
    workdir.mkdir()
    shown = io.StringIO()
    summary = conducted(made, workdir, Console(file=shown, width=200), silent)
    assert summary["chosen"] == {} and summary["confirmation"] == {}
    assert [row["score"] for row in summary["scores"]] == [None, None]
    assert "Not judged: fundus contrast half; its runs left no figure" in shown.getvalue()


def test_a_study_that_ends_with_the_choice(tmp_path):
    workdir = tmp_path / "study"
    workdir.mkdir()
    made = config(tmp_path, last="choose")
    summary = conducted(made, workdir, Console(file=io.StringIO()), leave)
    assert summary["confirmation"] == {} and summary["chosen"]["fundus"]["pretext"] == "contrast"
    with pytest.raises(UsageError, match="config.runner='slurm'"):
        conducted(config(tmp_path, runner="slurm"), workdir, Console(), leave)


VESSELS = {"sizes__mini__modalities": ("vessels",), "sizes__mini__pretexts": ("rotation",)}


def test_segmentation_shares_random_starts_and_takes_the_recipe(tmp_path):
    plan = PretextPlan(config(tmp_path, **VESSELS))
    whole, half = plan.pairs
    found = {
        (phase, pair.recipe): [
            job
            for job in plan.jobs(phase, [pair], tmp_path)
            if job.facts["role"] not in ("initializer", "confirm")
        ]
        for phase in ("choose", "confirm")
        for pair in (whole, half)
    }
    ids = {key: {job.id for job in jobs} for key, jobs in found.items()}
    # Two tasks, two learning rates, the first seed: random starts are the same for both recipes.
    random = {job.id for job in found["choose", "whole"] if job.facts["start"] == "random"}
    assert len(random) == 4 and ids["choose", "whole"] & ids["choose", "half"] == random
    assert not ids["choose", "whole"] & ids["confirm", "whole"]
    seeds = {key: {job.config["seed"] for job in jobs} for key, jobs in found.items()}
    assert seeds["choose", "whole"] == {1111} and seeds["confirm", "whole"] == {1112}
    for job in found["choose", "half"]:
        init, start = job.config["init"], job.facts["start"]
        assert job.kind == "finetune" and job.config["task"].startswith("phantom_")
        assert (
            job.config["protocol"] | {"fraction": 0.2, "validation": 0.5} == job.config["protocol"]
        )
        assert (init["start"], init["depth_fraction"]) == (start, 1.0 if start == "random" else 0.5)
        assert job.needs == (() if start == "random" else (plan.training(half, 1111).id,))
    # What is left of the hypernetwork's own evaluation: diagnostics, after the choice.
    jobs = plan.jobs("confirm", [half], tmp_path)
    (diagnosed,) = [job for job in jobs if job.facts["role"] == "confirm"][:1]
    assert diagnosed.config["evaluate"]["downstream"]["networks"] == []
    assert diagnosed.config["evaluate"]["diagnostics"]["networks"] == 2
    assert not any(j.facts["role"] == "choose" for j in plan.jobs("choose", [half], tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes__mini__segmentation__tasks__vessels": ("idrid",)}, "tasks names 'idrid'; the"),
        (
            {"sizes__mini__segmentation__starts__choose": ("rotnet",)},
            "starts.choose names 'rotnet'",
        ),
    ],
    ids=str,
)
def test_a_segmentation_that_means_nothing(tmp_path, options, words):
    plan = PretextPlan(config(tmp_path, **VESSELS, **options))
    with pytest.raises(UsageError, match=words):
        plan.jobs("choose", plan.pairs, tmp_path)


def leave_masks(job, jobs_dir):
    """What a fine-tuning leaves: half of the tensors are best, and 0.01 the better rate."""
    if job.kind == "hyper":
        leave(job, jobs_dir)
        return
    folder, init = job.folder(jobs_dir), job.config["init"]
    folder.mkdir(parents=True)
    resolved = json.loads(json.dumps(job.resolved(jobs_dir).to_dict()))
    write_json(folder / CONFIG_FILE, {"name": job.name, "config": resolved})
    gain = 0.1 + 0.1 * (init["depth_fraction"] == 0.5) if init["start"] == "hyper" else 0.0
    dice = 0.5 + gain + 0.01 * (job.config["optim"]["learning_rate"] == 0.01)
    # On test images less is gained.
    best = {"validation": dice, "test": {"metric": 0.4 + gain / 2}}
    write_json(folder / "summary.json", {"best": best, "diverged": False})
    both = np.array([20, 30]) + round(50 * gain / 2)
    counts = np.stack([both, [50, 50], [50, 50]], 1)
    np.savez(
        folder / "predictions.npz",
        id=np.array(["a", "b"]), patient=np.array(["a", "b"]), **{"vessel/counts": counts},
    )  # fmt: skip


def test_segmentation_chooses_by_validation_and_confirms_on_test_images(tmp_path):
    made = config(tmp_path, **VESSELS)
    workdir = tmp_path / "study"
    workdir.mkdir()
    console = Console(file=io.StringIO(), width=200)
    summary = conducted(made, workdir, console, leave_masks)
    assert summary["chosen"]["vessels"]["recipe"] == "half"
    scores = {row["recipe"]: row["score"] for row in summary["scores"]}
    assert scores == {"whole": pytest.approx(0.1), "half": pytest.approx(0.2)}
    assert summary["dice_gain_over_matched"] == {"0.2": pytest.approx(0.1)}
    assert summary["dice_interval_over_random"]["0.2"] == pytest.approx([0.1, 0.1])
    assert summary["hypernetwork_seeds"] == 2 and len(summary["networks"]) == 4
    assert set(summary["dice_by_task"]) == {"drive_seg", "stare_seg"}
    others = {(row["task"], row["other"]) for row in summary["dice_on_images"]}
    assert len(others) == 6 and len(summary["dice_on_images"]) == 6
    for row in summary["dice_on_images"]:
        assert [row["low"], row["mean"], row["high"]] == pytest.approx([0.1] * 3)
    # The rate is chosen with the first seed, and further seeds follow when the grid is done.
    listing = json.loads((workdir / "jobs.json").read_text())
    last = [row for row in listing if row.get("experiment") == "confirm"]
    assert {row["seed"]: row["grid"]["learning_rate"] for row in last} == {1112: 0.01, 1113: 0.01}
    page = (workdir / "report.html").read_text()
    assert "drive_seg: test Dice" in page and "4 of 4 fine-tunings won" in page
    again = conducted(made, workdir, console, None)
    assert again["dice_on_images"] == summary["dice_on_images"]
