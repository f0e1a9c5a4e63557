import re
import runpy

import pytest
from conftest import ROOT

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders import BUILDERS
from medinit_jax.data.image_table import Columns
from medinit_jax.data.tasks import DATA_DIR, TASKS, make_builder

# Of tasks whose builder is not there, only the table is checked.
HERE = [name for name, task in TASKS.items() if task.dataset.partition("/")[0] in BUILDERS]


def test_the_twelve_tasks():
    assert len(TASKS) == 12
    assert sum("hyper" in starts for t in TASKS.values() for starts in t.reported.values()) == 11
    swcl = [t.reported["resnetv2_50x1"] for t in TASKS.values() if "resnetv2_50x1" in t.reported]
    assert len(swcl) == 7
    # Gains that the paper's text quotes.
    idrid, refuge = (TASKS[name].reported["resnetv2_50x1"] for name in ("idrid", "refuge_cls"))
    assert idrid["BiT-S"] - idrid["random"] == pytest.approx(0.2214)
    messidor = TASKS["messidor"].reported["resnetv2_50x1"]
    for task, gain in ((messidor, 0.0451), (idrid, 0.0485), (refuge, 0.0406)):
        assert task["SWCL"] - task["Kaggle-EyePACS"] == pytest.approx(gain)


def test_drive_is_a_task_that_can_be_made():
    assert "drive_seg" in HERE


@pytest.mark.parametrize("name", HERE)
def test_every_task_has_a_set_with_its_labels_and_modality(name, tmp_path):
    task, builder = TASKS[name], make_builder(name, tmp_path)
    assert f"{builder.name}/{builder.builder_config.name}" == task.dataset
    assert task.modality == builder.MODALITY
    assert set(task.labels) <= set(builder.info.features)


def test_seeds_of_tables(tmp_path):
    columns = Columns(labels=("grade",))
    for name, seed in (("medinit_table/mine", 3), ("medinit_table/mine_seed3", 0)):
        config = make_builder(name, tmp_path, seed, columns).builder_config
        assert (config.name, config.split_seed) == ("mine_seed3", 3)
    assert make_builder("medinit_table/mine", tmp_path, 0, columns).builder_config.split_seed == 0


def test_names_and_seeds(tmp_path):
    assert make_builder("medinit_drive", tmp_path).builder_config.name == "default"
    seeded = make_builder("medinit_drive/train_only", tmp_path, split_seed=3)
    same = make_builder("medinit_drive/train_only_seed3", tmp_path)
    assert seeded.builder_config.split_seed == same.builder_config.split_seed == 3
    assert str(seeded.data_path) == str(same.data_path)
    assert str(seeded.data_path).endswith("medinit_drive/train_only_seed3/1.0.0")
    for name, seed, message in (
        ("drive", 0, "no dataset 'drive'.*drive_seg"),
        (
            "medinit_drive/paper",
            0,
            "no config 'paper'; use one of: default, validation, train_only",
        ),
        ("medinit_drive/train_only_seed3", 4, "names a split seed other than 4"),
    ):
        with pytest.raises(UsageError, match=message):
            make_builder(name, tmp_path, split_seed=seed)


def test_names_of_other_sizes(tmp_path):
    sized = {
        "medinit_rsna_ihd/hu_paper10_512px": (0, 512),
        "medinit_rsna_cxr/patient_64px": (64, 0),
        "medinit_eyepacs/pretrain448_224px_seed3": (224, 0),
        "medinit_refuge/seg514_16px": (0, 16),
    }
    for name, sides in sized.items():
        builder = make_builder(name, tmp_path)
        config = builder.builder_config
        assert (config.shorter, config.square) == sides
        assert config.split_seed == (3 if name.endswith("seed3") else 0)
        assert str(builder.data_path).endswith(f"{name}/1.0.0")
        # The published numbers are those of the usual size.
        plain = make_builder(re.sub(r"_\d+px.*", "", name), tmp_path)
        wanted = plain.published(None)
        assert wanted and builder.published(None) == wanted
    for name in (
        # Too small or large, no number, and a config that keeps images as they are.
        *("medinit_rsna_cxr/patient_15px", "medinit_rsna_cxr/patient_4097px"),
        *("medinit_rsna_cxr/patient_064px", "medinit_rsna_cxr/patient_64px_64px"),
        *("medinit_drive/default_64px", "medinit_eyepacs/btgraham300_64px"),
    ):
        with pytest.raises(UsageError, match="has no config"):
            make_builder(name, tmp_path)


def test_a_table_has_a_name_and_a_seed_of_its_own(tmp_path):
    columns = Columns(labels=("grade",))
    builder = make_builder("medinit_table/mine", tmp_path, 3, columns)
    same = make_builder("medinit_table/mine_seed3", tmp_path, 0, columns)
    for one in (builder, same):
        assert one.builder_config.split_seed == 3
        assert str(one.data_path) == str(tmp_path / "medinit_table/mine_seed3/1.0.0")
    assert make_builder("medinit_table/v1.2-b", tmp_path, columns=columns).builder_config.columns
    for name in ("medinit_table", "medinit_table/default", "medinit_drive/mine"):
        with pytest.raises(UsageError, match=f"with a NAME of your own, not to {name}"):
            make_builder(name, tmp_path, columns=columns)
    with pytest.raises(UsageError, match="names a split seed other than 4"):
        make_builder("medinit_table/mine_seed3", tmp_path, 4, columns)
    for name in ("../../esc/x2", "..", ".hidden", "a/b", "a b", "a\n", "/tmp/x"):
        with pytest.raises(UsageError, match="is no name for a table"):
            make_builder(f"medinit_table/{name}", tmp_path / "data", columns=columns)
        with pytest.raises(UsageError, match="(?s)No table is prepared as .* --columns image=file"):
            make_builder(f"medinit_table/{name}", tmp_path / "data")
    with pytest.raises(UsageError, match="as medinit_table/mine in .* --columns image=file"):
        make_builder("medinit_table/mine", tmp_path)
    assert not list(tmp_path.iterdir())


def test_sets_are_looked_for_where_training_looks():
    config = runpy.run_path(str(ROOT / "configs" / "hyper.py"))["get_config"]()
    assert config.data.data_dir == DATA_DIR
