"""The quickstarts run as they are printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from medinit_jax.core.parameters import save_params
from medinit_jax.hyper.asset import installed
from medinit_jax.hyper.hypernetwork import HyperInitializer, init_theta

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = {"timm": "timm", "monai": "monai", "smp": "segmentation_models_pytorch"}


def test_the_page_prints_the_scripts():
    page = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    scripts = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("quickstart_*.py")}
    assert scripts.keys() == {f"quickstart_{name}.py" for name in SCRIPTS}
    for name, script in scripts.items():
        assert script in blocks, f"quickstart.md prints another {name}"
        assert f"python docs/{name}" in page


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """An installed initializer of the size of the released one's small layers, untrained."""
    place = tmp_path_factory.mktemp("cache")
    # As the released one: the node types of the small design space, and its tiles in channels.
    options = {"hidden": 8, "max_shape": [32, 32, 7, 7], "node_types": 15}
    theta = jax.device_get(init_theta(HyperInitializer(**options), jax.random.key(2))["params"])
    seen = {"size": 32, "mean": [0.32, 0.23, 0.16], "std": [0.30, 0.22, 0.18]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDINIT_CACHE_DIR", str(place))
        folder = installed() / "medinit-fundus"
    folder.parent.mkdir()
    save_params(folder, theta, {"hyper": options, "modality": "fundus", "preprocessing": seen})
    return place


@pytest.mark.torch
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_and_its_loss_falls(name, cache, tmp_path):
    pytest.importorskip(SCRIPTS[name], reason="needs the [quickstart] extra")
    run = subprocess.run(
        [sys.executable, str(DOCS / f"quickstart_{name}.py")],
        env={**os.environ, "MEDINIT_CACHE_DIR": str(cache), "XLA_FLAGS": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    (share,) = re.findall(r"^(\d+\.\d)% of the parameters predicted$", run.stdout, re.M)
    first, last = map(float, re.findall(r"^loss (\S+) -> (\S+)$", run.stdout, re.M)[0])
    assert float(share) > (80 if name == "smp" else 99)
    assert last < first
