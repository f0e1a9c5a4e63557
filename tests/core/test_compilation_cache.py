import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from medinit_jax.core import compilation_cache
from medinit_jax.core.errors import UsageError

NAMES = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def unset(monkeypatch):
    before = {name: getattr(jax.config, name) for name in NAMES}
    monkeypatch.delenv("MEDINIT_CACHE_DIR", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_where_it_is(unset, monkeypatch, tmp_path):
    assert compilation_cache.directory() == Path.home() / ".cache" / "medinit_jax" / "xla"
    monkeypatch.setenv("MEDINIT_CACHE_DIR", str(tmp_path / "env"))
    assert compilation_cache.directory() == tmp_path / "env" / "xla"
    assert compilation_cache.directory("") == tmp_path / "env" / "xla"
    assert compilation_cache.directory(tmp_path / "set") == tmp_path / "set" / "xla"


def test_a_folder_that_jax_was_told_to_use_stays_unless_one_is_asked_for(unset, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert compilation_cache.enable() == tmp_path / "own"
    assert compilation_cache.enable(tmp_path / "set") == tmp_path / "set" / "xla"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "set" / "xla")


def test_a_place_that_cannot_be_made_is_named(unset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file/xla cannot be made .*MEDINIT_CACHE_DIR"):
        compilation_cache.enable(tmp_path / "file")


def test_small_programs_are_kept_for_the_next_process(tmp_path):
    script = """
import jax, sys
from medinit_jax.core import compilation_cache
from jax._src import monitoring
hits = []
monitoring.register_event_listener(lambda name, **kw: hits.append(name))
compilation_cache.enable()
jax.jit(lambda x: x * 3 + 1)(2.0)
print(sum(name.endswith("compilation_cache/cache_hits") for name in hits))
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment |= {"MEDINIT_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}

    def hits():
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, check=True
        )
        return int(done.stdout)

    assert hits() == 0
    assert list((tmp_path / "xla").iterdir())
    assert hits() >= 1


def test_what_is_in_use(unset, tmp_path):
    assert compilation_cache.in_use() is None
    place = compilation_cache.enable(tmp_path)
    assert compilation_cache.in_use() == place and compilation_cache.entries(place) == 0
    jax.jit(lambda x: x + 1)(jax.numpy.ones(3)).block_until_ready()
    jax.config.update("jax_enable_compilation_cache", False)
    assert compilation_cache.in_use() is None
    jax.config.update("jax_enable_compilation_cache", True)
