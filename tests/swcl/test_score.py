"""The route `patches`: from a labeler and sets by name to pairs of patches and their page."""

import json
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_trees.eyepacs import make_eyepacs
from fake_trees.oia_odir import make_oia_odir
from made_labeler import write_labeler
from made_patches import content

from medinit_jax import main as main_lib
from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.core.interrupt import Preempted
from medinit_jax.core.parallel import Parallel
from medinit_jax.data.augment import normalize
from medinit_jax.data.builders.eyepacs import MedinitEyepacs
from medinit_jax.data.builders.oia_odir import MedinitOiaOdir
from medinit_jax.data.prepare import prepare
from medinit_jax.data.prepared import PreparedSource
from medinit_jax.data.tasks import make_builder
from medinit_jax.downstream.cam import run_with_map, upsample_aligned
from medinit_jax.finetune.tuned import load_model
from medinit_jax.swcl import patch_plan, patch_store, score, score_stream
from medinit_jax.swcl.cam_scores import foreground
from medinit_jax.swcl.patch_geometry import CUTS, boxes, cut_patch, named
from medinit_jax.swcl.patch_pairs import open_pairs
from medinit_jax.swcl.score_sets import open_sets, source_name

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "patches.py"
SIDE, CROP = 64, 32
LABELLED, UNLABELLED = "phantom_odir_64px_x0.01", "phantom_eyepacs_dr_64px_x0.004"
SIGNS = {-1: "left", 1: "right"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def labeler(tmp_path_factory):
    return write_labeler(tmp_path_factory.mktemp("labeler"), width=8)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Makes parts of three patients, so that a few of them make several parts."""
    monkeypatch.setattr(patch_plan, "PART", 3)
    monkeypatch.setattr(patch_store, "PART", 3)


def config_of(labeler, data_dir, *more, variant=""):
    command = [
        "test",
        f"--config={CONFIG}{variant}",
        f"--config.labeler={labeler}",
        f"--config.data_dir={data_dir}",
        f"--config.labelled={LABELLED}",
        f"--config.unlabelled={UNLABELLED}",
        f"--config.image_size={SIDE}",
        f"--config.crop={CROP}",
        "--config.batch=4",
        "--config.workers=2",
    ]
    return read_command_line([*command, *more]).config


def one_device():
    return Parallel(jax.local_devices()[:1])


@pytest.fixture(scope="module")
def done(labeler, data_dir, tmp_path_factory):
    """(summary, workdir) of a run on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patch_plan, "PART", 3)
        patch.setattr(patch_store, "PART", 3)
        workdir = tmp_path_factory.mktemp("runs") / "done"
        config = config_of(labeler, data_dir, "--config.name=whole")
        return score.run(config, workdir, one_device()), workdir


def photographs(name, data_dir):
    """Yields patient, eye, label and photograph of a set, opened one by one."""
    builder = make_builder(name, str(data_dir))
    for split in ("train", "validation", "test"):
        plain = PreparedSource(builder, split, SIDE, "crop")
        states = PreparedSource(builder, split, SIDE, "crop", "abnormal")
        for place in range(len(plain)):
            one = states[place]
            yield plain.patients[place], SIGNS[one["eye"]], one["label"], one["image"]


def scores_of(labeler, image):
    """Scores of a photograph by other code: two maps, upsampled and compared in float64."""
    model = load_model(labeler)
    shown = normalize(image[None], model.plan.mean, model.plan.std)
    last = run_with_map(model.network, model.params, model.statistics, jax.numpy.asarray(shown))[1]
    kernel = np.asarray(model.params[model.network.program.head]["kernel"], np.float64)
    maps = np.asarray(last[0], np.float64) @ kernel
    normal, abnormal = (upsample_aligned(maps[..., k], (SIDE, SIDE)) for k in (0, 1))
    lesions = 1 / (1 + np.exp(normal - abnormal))
    lesions = lesions * np.asarray(foreground(shown, model.plan.mean, model.plan.std))[0]
    return {
        cut: lesions[top : top + CROP, left : left + CROP].mean()
        for cut, (top, left) in boxes(SIDE, CROP).items()
    }


def test_every_photograph_is_scored_stored_and_labelled(done, labeler, data_dir):
    summary, workdir = done
    table = open_pairs(str(workdir)).table
    pairs = open_pairs(summary["place"], str(data_dir))
    assert summary["place"] == "retinal_swap/whole" and table.names == pairs.table.names
    place = {
        name: (i, side) for i, both in enumerate(table.names) for side, name in enumerate(both)
    }
    normal = {"odir-phantom": [], "eyepacs-dr-phantom": []}
    for source, name in zip(normal, (LABELLED, UNLABELLED), strict=True):
        for number, (patient, eye, label, image) in enumerate(photographs(name, data_dir)):
            expected = scores_of(labeler, image) if number % 5 == 0 else None
            for cut in CUTS:
                position = named(cut, eye)
                patient = patient.removeprefix("odir_")
                row, side = place[f"{source}_{patient}_{eye}_{position}"]
                found = table.scores[row, side]
                assert table.labels[row, side] == label
                np.testing.assert_array_equal(
                    pairs[row][eye], cut_patch(image, CROP, eye, position)
                )
                if label == 0:
                    normal[source].append(found)
                if expected is not None and not (label == 0 and source == "odir-phantom"):
                    np.testing.assert_allclose(found, expected[cut], atol=2e-5)
    # Only what a labelled set calls normal is 0 by its label.
    assert normal["odir-phantom"] and max(normal["odir-phantom"]) == 0
    assert normal["eyepacs-dr-phantom"] and min(normal["eyepacs-dr-phantom"]) > 0


def test_the_summary_counts_what_is_there(done):
    summary, workdir = done
    table = open_pairs(str(workdir)).table
    assert summary == json.loads((workdir / "summary.json").read_text())
    assert summary["pairs"] == len(table.names) == 5 * summary["patients"]
    assert summary["patches"] == 2 * summary["pairs"] == 5 * summary["scored"]
    assert summary["share_abnormal"] == (table.scores >= 0.4).mean()
    for name, one in summary["by_source"].items():
        own = table.scores[[source == name for source in table.sources]]
        assert one["patches"] == own.size and one["share_abnormal"] == (own >= 0.4).mean()
        assert one["unpaired"] == 0 and one["patients"] == len(own) // 5
    assert len(summary["by_source"]) == 2 and summary["unpaired"]["count"] == 0
    assert 0 < summary["device_busy_share"] <= 1 and summary["photographs_per_s"] > 0
    assert [one["role"] for one in summary["sets"]] == ["labelled"] * 3 + ["unlabelled"] * 3
    assert len(summary["labeler"]["sha256"]) == 64


def test_the_page_shows_groups_and_maps(done):
    _, workdir = done
    page = (workdir / "report.html").read_text()
    for text in (
        "labelled normal",
        "labelled abnormal",
        "unlabelled",
        "odir-phantom",
        "Provenance",
    ):
        assert text in page
    assert page.count("data:image/png;base64,") == 6 and "http" not in page.replace("w3.org", "")
    groups = json.loads((workdir / "patches.json").read_text())["histogram"]["groups"]
    table = open_pairs(str(workdir)).table
    phantoms = [name == "eyepacs-dr-phantom" for name in table.sources]
    # All of an unlabelled set is unlabelled here, although its labels are known.
    assert groups["unlabelled"]["patches"] == 2 * sum(phantoms)
    assert groups["labelled normal"]["abnormal"] == 0


def test_a_finished_run_is_left_alone(done, labeler, data_dir, capsys):
    summary, workdir = done
    before = content(workdir)
    config = config_of(labeler, data_dir, "--config.name=whole")
    assert score.run(config, workdir, one_device()) == summary
    assert content(workdir) == before and "is finished" in capsys.readouterr().err


def test_a_set_that_is_there_is_not_scored_again(done, labeler, data_dir, tmp_path):
    config = config_of(labeler, data_dir, "--config.name=whole", "--config.threshold=0.6")
    again = score.run(config, tmp_path / "again", one_device())
    assert again["scored"] == 0 and again["device_busy_share"] is None
    assert again["pairs"] == done[0]["pairs"] and again["threshold"] == 0.6
    other = config_of(labeler, data_dir, "--config.name=whole", "--config.mask=none")
    with pytest.raises(UsageError, match="prepared with other options of the same name .origin"):
        score.run(other, tmp_path / "other", one_device())
    # Nothing is left behind that would stand in the way of a run with another name.
    assert not (tmp_path / "other").exists()


def test_a_set_in_the_workdir_shares_no_name_and_moves_with_it(done, labeler, data_dir, tmp_path):
    config = config_of(labeler, data_dir, "--config.name=whole", "--config.layout=workdir")
    score.run(config, tmp_path / "run", one_device())
    (tmp_path / "run").rename(tmp_path / "moved")
    found, wanted = open_pairs(str(tmp_path / "moved")), open_pairs(str(done[1]))
    assert len(found) == len(wanted) > 0
    np.testing.assert_array_equal(found.table.scores, wanted.table.scores)
    np.testing.assert_array_equal(found[3]["left"], wanted[3]["left"])
    assert found.describe()["sha256"] == wanted.describe()["sha256"]


def test_the_devices_share_the_work(done, labeler, data_dir, tmp_path):
    config = config_of(labeler, data_dir, "--config.name=shared", "--config.batch=3")
    summary = score.run(config, tmp_path / "shared", Parallel())
    assert len(jax.local_devices()) == 4
    one, four = (open_pairs(str(place)).table for place in (done[1], tmp_path / "shared"))
    assert one.names == four.names and summary["share_abnormal"] == done[0]["share_abnormal"]
    np.testing.assert_allclose(four.scores, one.scores, atol=2e-6)


@pytest.mark.parametrize("variant", ["", ":authors"])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(
    variant, done, labeler, data_dir, tmp_path, monkeypatch
):
    config = config_of(labeler, data_dir, "--config.name=stopped", variant=variant)
    calls = []
    plain = score_stream.padded

    def stopping(images, batch):
        calls.append(len(images))
        if len(calls) == 8:
            signal.raise_signal(signal.SIGTERM)
        return plain(images, batch)

    monkeypatch.setattr(score_stream, "padded", stopping)
    with pytest.raises(KeyboardInterrupt):
        score.run(config, tmp_path / "run", one_device())
    monkeypatch.setattr(score_stream, "padded", plain)
    # Parts need not end in their order: the second one is missing, later ones are there.
    (second,) = (
        tmp_path.parent.rglob(f"{tmp_path.name}/**/rows-000001.json")
        if variant
        else (Path(data_dir) / "retinal_swap" / "stopped").rglob("rows-000001.json")
    )
    assert second.with_name("rows-000002.json").exists()
    second.unlink()
    summary = score.run(config, tmp_path / "run", one_device())
    assert 0 < summary["scored"] < summary["patches"] / 5
    # Six photographs make a part, four a batch: never is a batch of two parts.
    assert set(calls) <= {4, 2}
    if variant:
        whole = tmp_path / "whole"
        score.run(config, whole, one_device())
        assert content(tmp_path / "run" / "patches") == content(whole / "patches")
        assert open_pairs(str(tmp_path / "run")).table.names == open_pairs(str(done[1])).table.names
        return
    shards = [
        {k: v for k, v in content(folder).items() if "array_record" in k or k == "pairs.csv"}
        for folder in (Path(data_dir) / "retinal_swap" / n / "1.0.0" for n in ("stopped", "whole"))
    ]
    assert shards[0] == shards[1] and len(shards[0]) > 2


def test_a_signal_while_panels_are_scored_stops_too(labeler, data_dir, tmp_path, monkeypatch):
    config = config_of(labeler, data_dir, "--config.name=panels")
    plain = score.padded

    def stopping(images, batch):
        # A second signal would end this process.
        monkeypatch.setattr(score, "padded", plain)
        signal.raise_signal(signal.SIGTERM)
        return plain(images, batch)

    monkeypatch.setattr(score, "padded", stopping)
    with pytest.raises(Preempted):
        score.run(config, tmp_path / "run", one_device())
    assert not (tmp_path / "run" / "summary.json").exists()
    summary = score.run(config, tmp_path / "run", one_device())
    assert summary["scored"] == 0 and (tmp_path / "run" / "report.html").is_file()


def test_main_stops_with_130_and_errors_are_sentences(labeler, data_dir, monkeypatch, capsys):
    monkeypatch.setattr(main_lib.compilation_cache, "enable", lambda folder: None)
    command = ["main", f"--config={CONFIG}:phantom", f"--config.labeler={labeler}"]
    command.append("--config.batch=4")
    assert main_lib.main([*command, "--config.labelled=", "--config.unlabelled="]) == 2
    assert "config.labelled and config.unlabelled are empty" in capsys.readouterr().err

    def stopped(config, workdir):
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "run", stopped)
    assert main_lib.main(command) == 130


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--config.labeler="], "config.labeler is empty"),
        (["--config.crop=65"], "config.crop=65 does not fit into config.image_size=64"),
        (["--config.layout=files"], "set the layout to prepared, workdir or authors"),
        (["--config.mask=dark"], "the mask to background or none"),
        (["--config.threshold=1.5"], "threshold of abnormality is 1.5"),
        (["--config.batch=7"], "set the batch to 1 to 6 photographs"),
        (["--config.name=a b"], "'a b' is no name for patches"),
        (["--config.labelled=phantom_aptos_dr_64px_x0.01"], "has no feature abnormal"),
        (["--config.unlabelled=phantom_idrid_64px_x0.02"], "shows both eyes of no patient"),
        ([f"--config.unlabelled={LABELLED}:test"], "patients of .*test .unlabelled. are in .*odir"),
        ([f"--config.labelled={LABELLED},{LABELLED}"], "odir-phantom [0-9]+"),
    ],
)
def test_what_makes_no_patches_is_said(options, sentence, labeler, data_dir, tmp_path):
    config = config_of(labeler, data_dir, *options)
    with pytest.raises(UsageError, match=sentence):
        score.run(config, tmp_path / "run", one_device())


@pytest.mark.parametrize("role", ["labelled", "unlabelled"])
def test_either_kind_of_set_is_enough(role, labeler, data_dir, tmp_path):
    other = {"labelled": "unlabelled", "unlabelled": "labelled"}[role]
    named_ = f"--config.{role}={LABELLED}:validation"
    config = config_of(labeler, data_dir, named_, f"--config.{other}=", f"--config.name={role}")
    summary = score.run(config, tmp_path / "run", one_device())
    assert list(summary["by_source"]) == ["odir-phantom"] and len(summary["sets"]) == 1
    assert open_pairs(str(tmp_path / "run")).table.labels.min() >= 0


def test_photographs_without_eye_or_partner_are_listed(labeler, data_dir, tmp_path, monkeypatch):
    plain = PreparedSource.columns

    def damaged(self, names):
        table = plain(self, names)
        if "odir" in self.describe()["source"] and "test" in self.describe()["source"]:
            table["eye"][0] = 2
        return table

    monkeypatch.setattr(PreparedSource, "columns", damaged)
    config = config_of(labeler, data_dir, "--config.name=partly", "--config.unlabelled=")
    summary = score.run(config, tmp_path / "run", one_device())
    listed = summary["unpaired"]["photographs"]
    assert summary["unpaired"]["count"] == summary["by_source"]["odir-phantom"]["unpaired"] == 2
    assert sum(line.endswith("eye or patient unknown") for line in listed) == 1
    assert sum(": only the" in line for line in listed) == 1


def test_one_sided_scores_are_a_warning(labeler, data_dir, tmp_path, capsys):
    options = ["--config.name=onesided", "--config.threshold=1.0", "--config.note=a try"]
    config = config_of(labeler, data_dir, *options, "--config.unlabelled=")
    summary = score.run(config, tmp_path / "run", one_device())
    assert summary["share_abnormal"] == 0 and summary["notes"][0] == "a try"
    assert "lie below the threshold 1.0" in summary["notes"][1]
    assert "WARNING: All" in capsys.readouterr().err
    assert "lie below the threshold 1.0" in (tmp_path / "run" / "report.html").read_text()


def test_sets_have_names_of_their_own(data_dir):
    names = {
        "medinit_oia_odir/all": "oia-odir",
        "medinit_eyepacs/pretrain448": "eyepacs",
        LABELLED: "odir-phantom",
        UNLABELLED: "eyepacs-dr-phantom",
    }
    assert {name: source_name(make_builder(name, str(data_dir))) for name in names} == names


def test_columns_are_those_of_the_records(data_dir, labeler):
    open_sets(config_of(labeler, data_dir), None)
    builder = make_builder(LABELLED, str(data_dir))
    source = PreparedSource(builder, "train", SIDE)
    found = source.columns(["eye", "abnormal", "patient_id"])
    records = list(builder.as_data_source("train"))
    assert found["eye"] == [record["eye"] for record in records]
    assert found["abnormal"] == [record["abnormal"] for record in records]
    assert found["patient_id"] == source.patients


def test_the_published_sets_by_their_builders(tmp_path, labeler):
    """Patients have their own numbers; what a split repeats, or has no partner, is listed."""
    odir, eyepacs = make_oia_odir(tmp_path / "odir"), make_eyepacs(tmp_path / "eyepacs")
    sample = eyepacs / "sample"
    (sample / "10_left.jpeg").rename(sample / "1_left.jpeg")
    data = tmp_path / "data"
    prepare(MedinitOiaOdir(data_dir=data, strict_counts=False), odir, workers=0)
    prepare(
        MedinitEyepacs(data_dir=data, config="pretrain448", strict_counts=False), eyepacs, workers=0
    )
    sets = ["--config.labelled=medinit_oia_odir", "--config.unlabelled=medinit_eyepacs/pretrain448"]
    config = config_of(labeler, data, *sets, "--config.batch=6")
    summary = score.run(config, tmp_path / "run", one_device())
    table = open_pairs(str(tmp_path / "run")).table
    # Patient 1706 shows no fundus; the others of the tree, plus 44,352.
    assert set(table.patients[np.array(table.sources) == "oia-odir"] - 44_352) == {
        *(0, 4, 43, 2957), *(937, 967), *(3, 12, 20)
    }  # fmt: skip
    eyepacs_rows = np.array(table.sources) == "eyepacs"
    assert set(table.patients[eyepacs_rows]) == {*range(1, 7), *range(101, 105)}
    assert summary["unpaired"]["photographs"] == [
        "eyepacs 492: only the right eye",
        "eyepacs 1_left: in another split, too",
    ]
    names = {name: i for i, both in enumerate(table.names) for name in both}
    # 4: both eyes normal; 43: both abnormal; EyePACS' levels are kept but set nothing to 0.
    assert table.scores[names["oia-odir_4_left_c"]].tolist() == [0, 0]
    assert table.scores[names["oia-odir_43_left_c"]].min() > 0
    assert table.labels[names["eyepacs_1_left_c"]].tolist() == [0, 0]
    assert table.scores[names["eyepacs_1_left_c"]].min() > 0
