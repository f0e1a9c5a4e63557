"""Releases of initializers: packed, installed, loaded by path or name, and what is refused."""

import json
import os
import shutil
import subprocess
import zipfile

import jax
import numpy as np
import pytest

import medinit_jax
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import METADATA_FILE, PARAMS_FILE, save_params
from medinit_jax.hyper import asset
from medinit_jax.hyper.hypernetwork import HyperInitializer, init_theta

CARDS = {asset.CARD_FILE: "{}\n", asset.READABLE_CARD: "# A card\n"}


@pytest.fixture(scope="module")
def initializer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "initializer"
    options = {"hidden": 8, "max_shape": [8, 8, 3, 3]}
    theta = jax.device_get(init_theta(HyperInitializer(**options), jax.random.key(2))["params"])
    save_params(folder, theta, {"hyper": options, "modality": "fundus"})
    return folder


@pytest.fixture(scope="module")
def release(initializer, tmp_path_factory):
    return asset.pack(initializer, CARDS, "drawn", "1.2", tmp_path_factory.mktemp("dist"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDINIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "initializers"


def rewritten(release, place, change):
    """Writes a release whose {name: bytes} were changed."""
    with zipfile.ZipFile(release) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(place, "w") as target:
        for name, content in change(members).items():
            target.writestr(name, content)
    return place


def test_every_way_to_name_an_initializer_loads_the_same(initializer, release, cache):
    assert release.name == "drawn-1.2.zip"
    assert asset.install(release) == asset.install(release) == cache / "drawn"
    places = (initializer, initializer.parent, release, str(release), "drawn", cache / "drawn")
    loaded = [medinit_jax.load(place) for place in places]
    assert len({one.fingerprint for one in loaded}) == 1
    for one in loaded[1:]:
        jax.tree.map(np.testing.assert_array_equal, one.theta, loaded[0].theta)
    assert sorted(os.listdir(cache)) == ["drawn"]
    assert (cache / "drawn" / asset.READABLE_CARD).read_text() == "# A card\n"


def test_the_same_initializer_is_packed_into_the_same_bytes(initializer, release, tmp_path):
    again = asset.pack(initializer, CARDS, "drawn", "1.2", tmp_path / "new" / "dist")
    assert again.read_bytes() == release.read_bytes()
    checked = subprocess.run(
        ["sha256sum", "-c", f"{again.name}.sha256"], cwd=again.parent, capture_output=True
    )
    assert checked.returncode == 0
    with pytest.raises(UsageError, match="is there already"):
        asset.pack(initializer, CARDS, "drawn", "1.2", tmp_path / "new" / "dist")
    for name in ("../x", "", "Drawn", "a/b"):
        with pytest.raises(UsageError, match="cannot be named"):
            asset.pack(initializer, CARDS, name, "1.2", tmp_path)


def test_what_lies_at_the_path_comes_before_an_installed_name(initializer, release, tmp_path):
    asset.install(release)
    shutil.copytree(initializer, tmp_path / "drawn")
    (tmp_path / "drawn" / METADATA_FILE).write_text("{}")
    with pytest.raises(UsageError, match="cannot be read"):
        medinit_jax.load("drawn")


def test_a_name_that_is_not_installed_says_what_to_do(release, cache):
    with pytest.raises(UsageError, match=r"no initializer drawn.*holds none;.*release install"):
        medinit_jax.load("drawn")
    asset.install(release)
    with pytest.raises(UsageError, match="holds only drawn"):
        medinit_jax.load("other")
    (cache.parent / "secret").mkdir()
    with pytest.raises(UsageError, match="There is no initializer"):
        medinit_jax.load("../secret/..")


ATTACKS = {
    "outside": lambda m: {**m, "../evil": b"x"},
    "absolute": lambda m: {**m, "/tmp/evil": b"x"},
    "another folder": lambda m: {**m, "other/card.json": b"x"},
    "deeper": lambda m: {**m, "drawn/more/card.json": b"x"},
    "a file too much": lambda m: {**m, "drawn/run.py": b"x"},
    "a file too few": lambda m: {k: v for k, v in m.items() if not k.endswith("CARD.md")},
    "a top that leads out": lambda m: {k.replace("drawn", ".."): v for k, v in m.items()},
    "no folder": lambda m: {k.replace("drawn/", ""): v for k, v in m.items()},
    "empty": lambda m: {},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_no_release_writes_nothing(release, cache, tmp_path, name):
    archive = rewritten(release, tmp_path / "bad.zip", ATTACKS[name])
    before = sorted(tmp_path.rglob("*"))
    for use in (asset.install, medinit_jax.load):
        with pytest.raises(UsageError, match="is no release of an initializer"):
            use(archive)
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before] == [
        cache.parent,
        cache,
    ]


def test_damage_is_found(release, cache, tmp_path):
    content = release.read_bytes()
    for kind, damaged in (
        ("short", content[: len(content) // 2]),
        ("text", b"<html>Not found</html>"),
        ("turned", content[:4000] + bytes([content[4000] ^ 255]) + content[4001:]),
    ):
        archive = tmp_path / f"{kind}.zip"
        archive.write_bytes(damaged)
        with pytest.raises(UsageError, match="is no release of an initializer, or it is damaged"):
            asset.install(archive)
    # Whole as an archive, with other parameters than its metadata tells of.
    archive = rewritten(release, tmp_path / "b.zip", lambda m: {**m, f"drawn/{PARAMS_FILE}": b"x"})
    with pytest.raises(UsageError, match="is not what was saved"):
        asset.install(archive)
    with pytest.raises(UsageError, match="not the one given"):
        asset.install(release, "0" * 64)
    with pytest.raises(UsageError, match="is no file"):
        asset.install(tmp_path / "absent.zip")
    assert list(cache.iterdir()) == []
    assert asset.install(release, asset.digest(release).upper()).is_dir()


def test_a_huge_member_is_refused_before_it_is_read(release, tmp_path, monkeypatch):
    monkeypatch.setattr(asset, "LARGEST", 1000)
    with pytest.raises(UsageError, match="unpacks to more than"):
        asset.install(release)


def test_another_release_of_a_name_does_not_replace_it(release, cache, tmp_path):
    asset.install(release)
    card = json.dumps({"version": 2}).encode()
    other = rewritten(release, tmp_path / "o.zip", lambda m: {**m, "drawn/card.json": card})
    with pytest.raises(UsageError, match="Another initializer is installed as drawn; remove"):
        asset.install(other)
    assert (cache / "drawn" / asset.CARD_FILE).read_text() == "{}\n"
    assert medinit_jax.load(other).fingerprint == medinit_jax.load("drawn").fingerprint
