"""What a reader of an initializer does not need is not imported."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys

REFUSED = {"torch", "cv2", "tensorflow_datasets", "tensorflow", "torchvision", "timm"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise AssertionError(f"{name} is imported")


sys.meta_path.insert(0, Refuse())

import jax
import jax.numpy as jnp
import flax.linen as nn

import medinit_jax
from medinit_jax.core.parameters import save_params
from medinit_jax.hyper.hypernetwork import HyperInitializer, init_theta


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Conv(8, (3, 3))(x)).mean((1, 2)))


options = {"hidden": 8, "max_shape": [8, 8, 3, 3]}
theta = jax.device_get(init_theta(HyperInitializer(**options), jax.random.key(2))["params"])
save_params(sys.argv[1], theta, {"hyper": options})
images = jnp.zeros((2, 8, 8, 3))
variables = medinit_jax.initialize(Model(), images, medinit_jax.load(sys.argv[1]), quiet=True)
print(Model().apply(variables, images).shape)
"""


def run(program, folder):
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_flax_model_is_initialized_without_torch_opencv_and_tfds(tmp_path):
    done = run(PROGRAM, tmp_path / "start")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 2)\n"


@pytest.mark.parametrize("module", ["medinit_jax.data.phantoms", "medinit_jax.data.archive"])
def test_the_guard_refuses(tmp_path, module):
    """It would see OpenCV and tfds if they were imported."""
    done = run(PROGRAM.replace("import medinit_jax\n", f"import {module}\n"), tmp_path / "start")
    assert done.returncode == 1 and "is imported" in done.stderr
