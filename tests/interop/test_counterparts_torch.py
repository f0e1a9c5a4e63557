"""Classes of other libraries: their tensors are those that are exported."""

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [torch] extra")
pytest.importorskip("timm", reason="needs the [torch] extra")
pytestmark = pytest.mark.torch

from tiny_pretrain import NAME  # noqa: E402

from medinit_jax.interop.counterparts import counterpart  # noqa: E402
from medinit_jax.interop.layouts import names_of, to_state  # noqa: E402
from medinit_jax.interop.origin import Origin  # noqa: E402
from medinit_jax.models import zoo  # noqa: E402
from medinit_jax.models.statistics import initial_statistics  # noqa: E402

# What the library lacks, or computes otherwise.
ABSENT = {
    "torchvision": {"resnetv2_50x1_bit"},
    "timm": {"mobilenet_v3_large"},
    "smp": {name for name in zoo.CLASSIFIERS if name.startswith(("convnext", "vit", "resnetv2"))}
    | {"mobilenet_v3_large"},
}


@pytest.mark.filterwarnings("ignore:`timm-` encoders are deprecated")
@pytest.mark.parametrize("layout", ABSENT)
def test_a_class_has_the_tensors_that_are_exported(layout):
    """Names and shapes alone, so that no weight is drawn."""
    if layout == "smp" and not importlib.util.find_spec("segmentation_models_pytorch"):
        pytest.skip("needs the [quickstart] extra")
    # Other tests of this process may have lent the zoo a network.
    for name in zoo.CLASSIFIERS.keys() - ABSENT[layout] - {NAME}:
        program = zoo.build(name, 5, (64, 64, 3)).program
        assert names_of(name, program, layout).encoder_only == (layout == "smp")
        kind = "encoder" if layout == "smp" else "classification"
        origin = Origin("", "", name, {}, program, {}, {}, kind, (), {}, {}, {}, {}, ())
        found = counterpart(origin, layout)
        assert found is not None
        # torchvision's RegNets read their own values while they are made.
        regnet = layout == "torchvision" and name.startswith("regnet")
        with torch.device("cpu" if regnet else "meta"):
            theirs = {key: tuple(value.shape) for key, value in found.make().state_dict().items()}
        params = {
            module: {leaf: np.broadcast_to(np.float32(0), shape) for leaf, shape in leaves.items()}
            for module, leaves in program.parameter_shapes().items()
        }
        state = to_state(name, program, params, initial_statistics(program), layout)
        assert {key: value.shape for key, value in state.items()} == theirs, (name, found.call)
