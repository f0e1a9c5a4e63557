"""The opponent of the speed comparison computes what ours computes, in float64."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.arch.graph import build_graph
from medinit_jax.arch.space import Split, get_space
from medinit_jax.hyper.bilevel import loss_whole, meta_batch
from medinit_jax.hyper.hypernetwork import HyperInitializer, init_theta
from medinit_jax.hyper.pretexts.rotation import Rotation

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

SIZE, BATCH, CLASSES = 16, 4, 4
MODULE = HyperInitializer(hidden=8, max_shape=(8, 8, 7, 7), num_classes=CLASSES)
SPACE = dataclasses.replace(
    get_space("deepnets", SIZE),
    name="tiny",
    splits={"train": Split(size=10**4, n_cells=(3, 3), deep=(3,), steps=(1, 1, 2))},
    widen=lambda space, arch, parameters, rng: dataclasses.replace(arch, C=16, fc_dim=16),
)
KINDS = {
    "conv", "batch_norm", "dense", "relu", "max_pool", "avg_pool", "subsample", "concat", "add",
    "attention", "gate", "position", "layer_norm", "hard_swish", "gelu", "flatten", "zeros",
}  # fmt: skip
# Compiling takes longer than running once.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture(scope="module")
def torch_step():
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    yield pytest.importorskip("torch_step")
    sys.path.remove(folder)


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


def networks():
    """Small networks that hold all kinds of steps between them."""
    drawn = {}
    for index in range(300):
        network = SPACE.program("train", index, CLASSES)
        drawn[network] = {step.kind for call in network.calls for step in call.block.steps}
    found, missing = [], set(KINDS)
    while missing:
        best = max(drawn, key=lambda n: (len(drawn[n] & missing), -len(n.calls)))
        found.append(best)
        assert missing & drawn[best], missing
        missing -= drawn[best]
    return found


def test_loss_and_gradient(torch_step, wide):
    programs = networks()
    graphs = [build_graph(program) for program in programs]
    theta = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float64), init_theta(MODULE, jax.random.key(0))["params"]
    )
    random = np.random.default_rng(0)
    images = random.normal(size=(BATCH, SIZE, SIZE, 3))
    targets = np.arange(BATCH, dtype=np.int32) % CLASSES

    def loss(theta):
        return loss_whole(MODULE, theta, programs, graphs, images, targets, Rotation().loss, BATCH)[
            0
        ]

    run = jax.jit(loss, compiler_options=QUICK)
    work = torch_step.plan(meta_batch(programs, graphs, MODULE), MODULE, torch.float64)
    network = torch_step.Hypernetwork(MODULE, theta)
    views = torch.from_numpy(images).permute(0, 3, 1, 2)
    losses = [
        torch.nn.functional.cross_entropy(
            torch_step.run(program, given, views), torch.from_numpy(targets).long()
        )
        for program, given in zip(programs, network.predict(programs, work), strict=True)
    ]
    total = torch.stack(losses).mean()
    total.backward()
    np.testing.assert_allclose(total.item(), run(theta), rtol=1e-10)
    # Along one direction, by differences of ours: compiling its gradient takes three times as long.
    direction = jax.tree.map(lambda x: random.normal(size=x.shape), theta)
    ahead, behind = (
        run(jax.tree.map(lambda x, way, sign=sign: x + sign * 1e-9 * way, theta, direction))
        for sign in (1, -1)
    )
    products = jax.tree.map(lambda a, b: (a * b).sum(), network.gradient(), direction)
    slope = sum(jax.tree.leaves(products))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-9, rtol=1e-5)
