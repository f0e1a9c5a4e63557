import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import load_params, save_params


def bits(tree):
    return [
        (np.dtype(leaf.dtype).name, leaf.shape, np.asarray(leaf).tobytes())
        for leaf in jax.tree.leaves(tree)
    ]


def test_published_params_come_back_bit_for_bit(tmp_path):
    params = {
        "decoder": {
            "kernel": jnp.asarray(np.arange(6).reshape(2, 3).T, jnp.bfloat16),
            "scale": np.float64(1 / 3) * np.ones(()),
        },
        "embedding": {"table": np.arange(6.0, dtype=np.float32).reshape(2, 3).T},
    }
    save_params(tmp_path / "published", params, {"num_classes": 4})
    loaded, metadata = load_params(tmp_path / "published")
    assert metadata == {"num_classes": 4}
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    assert bits(loaded) == bits(params)
    assert sorted(os.listdir(tmp_path)) == ["published"]


def test_published_params_are_not_overwritten(tmp_path):
    save_params(tmp_path / "a", {"w": np.zeros(1)}, {})
    with pytest.raises(UsageError, match="is there already"):
        save_params(tmp_path / "a", {"w": np.ones(1)}, {})
    assert load_params(tmp_path / "a")[0]["w"] == 0


@pytest.mark.parametrize("name", ["params.safetensors", "initializer.json"])
@pytest.mark.parametrize("harm", ["truncate", "remove", "flip"])
def test_harmed_published_params_are_named(tmp_path, name, harm):
    save_params(tmp_path / "a", {"w": np.arange(9.0)}, {"note": "x"})
    path = tmp_path / "a" / name
    content = path.read_bytes()
    if harm == "remove":
        path.unlink()
    elif harm == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(UsageError, match=name):
        load_params(tmp_path / "a")


def test_a_folder_that_is_no_initializer(tmp_path):
    (tmp_path / "initializer.json").write_text(json.dumps({"other": 1}))
    (tmp_path / "params.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be read"):
        load_params(tmp_path)
