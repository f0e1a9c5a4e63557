"""Weights of the networks of SWCL's authors, drawn from their PyTorch names, and those names."""

import json
import re
import zlib

import jax.numpy as jnp
import numpy as np
from oracles import SHARED

from medinit_jax.models.statistics import initial_statistics

KEYS = SHARED / "oracles" / "swcl_state_dict_keys.json"


def held_keys(part):
    """One part of what is known of the authors' state dicts."""
    return json.loads(KEYS.read_text())[part]


def state_of(model):
    """The weights of a model {name: array}; no array is stored, each is drawn from its name."""
    shapes = held_keys("state_dict")[model]
    return {k: drawn(k, s) for k, s in shapes.items() if not k.endswith("num_batches_tracked")}


def drawn(name, shape):
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_mean"):
        value = 0.1 * rng.standard_normal(shape)
    elif name.endswith("running_var"):
        value = 1 + 0.5 * rng.random_sample(shape)
    elif name.endswith("bias"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        value = 1 + 0.1 * rng.standard_normal(shape)
    else:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return value.astype(np.float32)


def resnet(module):
    """The name of a module of a ResNet; torchvision's."""
    return module


def bit(module):
    """The authors' name of a module of a BiT network, which is timm's here."""
    found = re.fullmatch(r"encoder\.stages\.(\d)\.blocks\.(\d+)\.(\w+)(\.conv)?", module)
    if found:
        leaf = found[3].replace("norm", "gn")
        return f"encoder.body.block{int(found[1]) + 1}.unit{int(found[2]) + 1:02d}.{leaf}"
    return {"encoder.stem.conv": "encoder.root.conv", "encoder.norm": "encoder.head.gn"}[module]


def classifier(encoder):
    """A classifier's modules have no "encoder." here."""
    return lambda module: encoder(f"encoder.{module}")


def loaded(program, state, rename, heads=()):
    """Returns (params, statistics), without the head if `heads` names none; nothing may be left."""
    left = set(state)

    def take(name):
        left.discard(name)
        return state[name]

    params = {}
    for module, leaves in program.parameter_shapes().items():
        if module == program.head and not heads:
            continue
        params[module] = {}
        for leaf, shape in leaves.items():
            end = "bias" if leaf == "bias" else "weight"
            names = heads if module == program.head else [rename(module)]
            value = np.concatenate([take(f"{name}.{end}") for name in names])
            if value.ndim == 4:
                value = value.transpose(2, 3, 1, 0)
            elif value.ndim == 2:
                value = value.T
            params[module][leaf] = jnp.asarray(value.reshape(shape))
    statistics = {}
    for name in initial_statistics(program):
        module = rename(name.removesuffix(".stats"))
        statistics[name] = {
            leaf: jnp.asarray(take(f"{module}.running_{leaf}")) for leaf in ("mean", "var")
        }
    assert not left
    return params, statistics


def encoder_state(state):
    """The weights below "encoder."."""
    return {name: value for name, value in state.items() if name.startswith("encoder.")}


def loaded_head(state, prefix):
    """Returns the parameters {module: {leaf: array}} of linear layers and norms of vectors."""
    params = {}
    for name, value in state.items():
        module, _, end = name.rpartition(".")
        if name.startswith(f"{prefix}.") and end != "weight_g":
            leaf = "bias" if end == "bias" else "kernel" if value.ndim == 2 else "scale"
            params.setdefault(module, {})[leaf] = jnp.asarray(value.T)
    return params
