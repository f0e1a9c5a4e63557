"""Heads against the authors' networks, their formulas in NumPy, and PyTorch's starts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import swcl
from reference_weights import (
    bit,
    classifier,
    encoder_state,
    held_keys,
    loaded,
    loaded_head,
    resnet,
    state_of,
)

from medinit_jax.core.errors import UsageError
from medinit_jax.finetune.layers import decay_mask
from medinit_jax.losses.vectors import unit
from medinit_jax.models import zoo
from medinit_jax.models.features import features
from medinit_jax.swcl.projection import (
    PREDICTOR,
    PROJECTION,
    ByolHead,
    DinoHead,
    Linear,
    MlpHead,
    TaskHeads,
)

POOLED = np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32)
HEADS = {
    "mlp": MlpHead(8),
    "byol": ByolHead(features=8, hidden=48),
    "byol bn": ByolHead(features=8, hidden=40, head_norm="bn"),
    "dino": DinoHead(12, hidden=20, bottleneck=8),
    "dino official": DinoHead(12, hidden=20, bottleneck=8, official=True),
}


def started(head, pooled=POOLED):
    return head.init(jax.random.key(0), jnp.asarray(pooled))


@pytest.fixture(scope="module")
def held():
    return swcl()


@pytest.fixture(scope="module")
def encoded(held):
    """Returns a function: model -> (its state, pooled features of the reference's images)."""
    images = held["net_x"].transpose(0, 2, 3, 1)
    networks = {name: zoo.build(name, 1, (64, 64, 3)) for name in ENCODERS}
    runs = {
        name: jax.jit(lambda v, x, network=network: features(network, v, x).pooled)
        for name, network in networks.items()
    }

    def encode(model):
        state = state_of(model)
        name = MODELS.get(model, MODELS["swcl50x1"])[0]
        params, statistics = loaded(
            networks[name].program, encoder_state(state), classifier(ENCODERS[name])
        )
        return state, runs[name]({"params": params, "batch_stats": statistics}, images)

    return encode


ENCODERS = {"resnetv2_50x1_bit": bit, "resnet18": resnet, "resnet50": resnet}
MODELS = {
    "swcl50x1": ("resnetv2_50x1_bit", [MlpHead()], "z"),
    "resnet18": ("resnet18", [MlpHead()], "z"),
    "resnet50": ("resnet50", [MlpHead()], "z"),
    "byol_target": ("resnetv2_50x1_bit", [ByolHead()], "out"),
    "byol_online": ("resnetv2_50x1_bit", [ByolHead(), ByolHead(PREDICTOR)], "out"),
    "dino": ("resnetv2_50x1_bit", [DinoHead()], "out"),
}


@pytest.mark.parametrize("model", MODELS)
def test_outputs_are_the_authors(model, held, encoded):
    _, heads, output = MODELS[model]
    state, y = encoded(model)
    used = set()
    for head, prefix in zip(heads, (PROJECTION, PREDICTOR), strict=False):
        params = loaded_head(state, prefix)
        shapes = jax.eval_shape(head.init, jax.random.key(0), y)["params"]
        # The authors' names and shapes, without a rename.
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, dict(shapes))
        used.update(params)
        y = jax.jit(head.apply)({"params": params}, y)
    rest = {name.rpartition(".")[0] for name in state if not name.startswith("encoder.")}
    assert rest == used
    expected = held[f"net_{model}_{output}"]
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("model", MODELS)
def test_what_decays_of_a_head_is_the_authors(model, held):
    """But lengths of prototypes, which are no parameters here."""
    groups = held_keys("weight_decay_groups")[model]
    found = {"decay": set(), "no_decay": set()}
    pooled = jnp.zeros((1, 512 if model == "resnet18" else 2048))
    for head in MODELS[model][1]:
        inputs = pooled if head is MODELS[model][1][0] else jnp.zeros((1, 256))
        shapes = jax.eval_shape(head.init, jax.random.key(0), inputs)["params"]
        for module, leaves in decay_mask(shapes).items():
            for leaf, decays in leaves.items():
                end = "bias" if leaf == "bias" else "weight"
                end = "weight_v" if module.endswith("last_layer") else end
                found["decay" if decays else "no_decay"].add(f"{module}.{end}")
    for group, names in groups.items():
        heads = {name for name in names if not name.startswith("encoder.")}
        assert found[group] == heads - {f"{PROJECTION}.last_layer.weight_g"}


def test_tasks_are_the_authors(held, encoded):
    state, pooled = encoded("joint_idrid")
    tasks = {"retinopathy-grade": 5, "macular-edema-risk": 3}
    found = TaskHeads(tasks).apply({"params": loaded_head(state, "out")}, pooled)
    assert list(found) == list(tasks)
    for task, logits in found.items():
        expected = held[f"net_joint_idrid_{task}"]
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", HEADS)
def test_widths_types_and_gradients(name):
    head = HEADS[name]
    variables = started(head)
    run = jax.jit(head.apply)
    for dtype, wide in ((jnp.float32, jnp.float32), (jnp.bfloat16, jnp.float32)):
        y = run(variables, jnp.asarray(POOLED, dtype))
        assert y.dtype == wide and y.shape == (6, 12 if "dino" in name else 8)
    exact = run(variables, POOLED)
    np.testing.assert_allclose(y, exact, atol=0.05 * float(jnp.abs(exact).max()))
    statistics = {key: value for key, value in variables.items() if key != "params"}

    def loss(params, pooled):
        return jnp.sin(head.apply({"params": params, **statistics}, pooled)).sum()

    gradients, towards = jax.jit(jax.grad(loss, (0, 1)))(variables["params"], POOLED)
    for value in [*jax.tree.leaves(gradients), towards]:
        assert np.isfinite(value).all()
    # Uphill a loss grows by the gradient's length; short steps cross no corner of a ReLU.
    length, step = float(jnp.linalg.norm(towards)), 2e-3
    value = jax.jit(lambda pooled: loss(variables["params"], pooled))
    plus, minus = (value(POOLED + sign * step * towards / length) for sign in (1, -1))
    assert float(plus - minus) / (2 * step) == pytest.approx(length, rel=0.02)


def test_vectors_of_length_one_and_of_length_zero():
    y = unit(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(y, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    gradient = jax.grad(lambda x: unit(x)[:, 0].sum())(jnp.zeros((1, 2)))
    assert np.isfinite(gradient).all()
    y = MlpHead(8).apply(started(MlpHead(8)), POOLED)
    np.testing.assert_allclose(jnp.square(y).sum(-1), 1, rtol=1e-5)


def test_a_prototype_is_a_direction():
    """Logits are cosines: they lie within -1 and 1, and do not see the length of a prototype."""
    head = HEADS["dino"]
    params = started(head)["params"]
    y = head.apply({"params": params}, POOLED)
    assert float(jnp.abs(y).max()) <= 1 + 1e-6
    longer = {**params, f"{PROJECTION}.last_layer": {"kernel": 7 * kernel_of(params)}}
    np.testing.assert_allclose(head.apply({"params": longer}, POOLED), y, atol=1e-6)


def kernel_of(params):
    return params[f"{PROJECTION}.last_layer"]["kernel"]


def test_official_dino_has_three_layers_and_gelu():
    """Against the formula in float64."""
    head = HEADS["dino official"]
    params = jax.tree.map(lambda x: 30 * np.asarray(x, np.float64), started(head)["params"])
    erf = np.vectorize(math.erf)
    y = POOLED.astype(np.float64)
    for number in (0, 2, 4):
        layer = params[f"{PROJECTION}.out.{number}"]
        y = (y * (1 + erf(y / np.sqrt(2))) / 2 if number else y) @ layer["kernel"] + layer["bias"]
    last = kernel_of(params)
    expected = (y / np.linalg.norm(y, axis=1, keepdims=True)) @ (
        last / np.linalg.norm(last, axis=0)
    )
    found = head.apply({"params": jax.tree.map(jnp.float32, params)}, POOLED)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_batch_norm_of_a_head_by_hand():
    head = HEADS["byol bn"]
    variables = started(head)
    first, last = (variables["params"][f"{PROJECTION}.out.{i}"] for i in (0, 3))
    hidden = POOLED @ first["kernel"] + first["bias"]
    normed = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    expected = np.maximum(normed, 0) @ last["kernel"] + last["bias"]
    found, state = head.apply(variables, POOLED, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    moved = state["batch_stats"][f"{PROJECTION}.out.1.stats"]
    np.testing.assert_allclose(moved["mean"], 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * hidden.var(0, ddof=1), rtol=1e-4)
    still = head.apply(variables, POOLED)
    np.testing.assert_allclose(
        still, np.maximum(hidden / np.sqrt(1 + 1e-5), 0) @ last["kernel"] + last["bias"], atol=1e-5
    )


def test_standardized_layers_do_not_see_scale_and_shift_of_a_kernel():
    head = HEADS["byol"]
    params = started(head)["params"]
    y = head.apply({"params": params}, POOLED)
    first = dict(params[f"{PROJECTION}.out.0"])
    first["kernel"] = 3 * first["kernel"] + 0.5
    moved = head.apply({"params": {**params, f"{PROJECTION}.out.0": first}}, POOLED)
    np.testing.assert_allclose(moved, y, atol=1e-4)


def test_layers_start_as_pytorchs():
    params = Linear(400).init(jax.random.key(3), jnp.zeros((1, 64)))["params"]
    for leaf in ("kernel", "bias"):
        values = np.asarray(params[leaf])
        assert np.abs(values).max() <= 1 / 8 and values.std() == pytest.approx(1 / 8 / 3**0.5, 0.1)
    params = started(DinoHead())["params"]
    first = params[f"{PROJECTION}.out.0"]
    assert np.std(first["kernel"]) == pytest.approx(0.02, rel=0.02) and not first["bias"].any()


def test_projector_and_predictor_fit_into_one_tree():
    names = [set(started(ByolHead(module, 8, 16))["params"]) for module in (PROJECTION, PREDICTOR)]
    assert len(names[0] | names[1]) == 6


def test_a_wrong_norm_or_width_is_named():
    with pytest.raises(UsageError, match="head_norm is 'ln'; set it to one of gn_ws, bn"):
        started(ByolHead(head_norm="ln"))
    with pytest.raises(UsageError, match="hidden=40; set it to a multiple of 16"):
        started(ByolHead(hidden=40))
