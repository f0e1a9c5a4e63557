"""Where a fine-tuning starts: parameters of a network, and what they came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax import api
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import load_params
from medinit_jax.downstream.protocol import fold_seed
from medinit_jax.finetune.layers import ENCODER, head_modules
from medinit_jax.hyper.starts import permuted, untrained_theta
from medinit_jax.models import zoo
from medinit_jax.models.initial import initial_parameters, torch_default_parameters
from medinit_jax.models.network import Network, is_below
from medinit_jax.models.statistics import initial_statistics

MODEL_FOLDER = "model"
# Tensors that do not fit, told in one error.
_MOST_LINES = 20


class Start(NamedTuple):
    """Where a network starts.

    Attributes:
        params: {module: {leaf: array}}.
        statistics: Batch statistics that belong to them; None where there are none.
        record: {"name", "path", "taken", "of", "left", "remarks"} as `summary.json` holds it:
            how many tensors came from elsewhere, of how many, and which did not, with the reason.
    """

    params: Any
    statistics: Any
    record: dict[str, Any]


# Of (configuration, network, random key).
Maker = Callable[[ml_collections.ConfigDict, Network, jax.Array], Start]


def make_start(config: ml_collections.ConfigDict, network: Network, console: Console) -> Start:
    """Returns the start that `config.init` names.

    Starts of one seed share what no start writes, the head above all.

    Args:
        config: The experiment; its `init`, `model.name` and `seed` are read.
        network: The network.
        console: Where is said what was taken.

    Raises:
        UsageError: There is no such start or file, or nothing in it fits the network.
    """
    init = config.init
    if init.start not in STARTS:
        raise UsageError(
            f"config.init.start={init.start!r}; set it to one of: {', '.join(STARTS)}."
        )
    if init.start in _PATHS and not init.path:
        raise UsageError(
            f"config.init.start={init.start} needs config.init.path: {_PATHS[init.start]}."
        )
    if init.start == "encoder":
        _refuse_another(config.model.name, init.path)
    key = jax.random.key(fold_seed(config.seed, "start"))
    start = STARTS[init.start](config, network, key)
    record = start.record
    if init.start in _PATHS:
        console.print(
            f"Start {record['name']}: {record['taken']} of {record['of']} tensors from "
            f"{record['path']}.",
            highlight=False,
            soft_wrap=True,
        )
    # The head is left out everywhere, and is no news.
    for line in record["left"][:10]:
        console.print(f"  own init: {line}", highlight=False, soft_wrap=True)
    if len(record["left"]) > 10:
        console.print(f"  and {len(record['left']) - 10} more, see summary.json")
    return start


def _random(config: ml_collections.ConfigDict, network: Network, key: jax.Array) -> Start:
    del config
    params = initial_parameters(network.program, key)
    return Start(params, None, _record("random", "", network, (), []))


def _torch_default(config: ml_collections.ConfigDict, network: Network, key: jax.Array) -> Start:
    """The random start of PyTorch's layers, in the encoder of a segmentation network only."""
    program = network.program
    params = initial_parameters(program, key)
    drawn = torch_default_parameters(program, key)
    only = _part(config.init, network)
    params |= {name: drawn[name] for name in params if not only or is_below(name, (only,))}
    return Start(params, None, _record("torch_default", "", network, (), [], only))


def _hyper(config: ml_collections.ConfigDict, network: Network, key: jax.Array) -> Start:
    """The parameters that a hypernetwork predicts; trained, untrained or permuted."""
    init = config.init
    initializer = api.load(init.path)
    if init.start == "untrained":
        theta = untrained_theta(initializer.module, initializer.metadata["seed"])
        initializer = initializer._replace(theta=jax.device_get(theta))
    program = network.program
    only = _part(init, network)
    example = jax.ShapeDtypeStruct((1, *program.input_shape), jnp.float32)
    plain = Network(program)
    params = api.initialize(
        plain,
        example,
        initializer,
        key=key,
        only=only,
        unknown_types=init.unknown_types,
        depth_fraction=init.depth_fraction,
        init_noise=init.init_noise,
        orthogonal=init.orthogonal,
        kinds=tuple(init.kinds),
        deviation=init.deviation,
        quiet=True,
    )["params"]
    own = initial_parameters(program, key)
    written = {
        f"{module}/{leaf}"
        for module, leaves in params.items()
        for leaf, value in leaves.items()
        if not np.array_equal(value, own[module][leaf])
    }
    if init.start == "matched":
        flat = {name: np.asarray(_at(params, name)) for name in sorted(written)}
        for name, value in permuted(flat, key, init.orthogonal).items():
            module, leaf = name.rsplit("/", 1)
            params[module][leaf] = jnp.asarray(value)
    rows = {row.path: row for row in api.inspect(plain, example, only=only).rows}
    wanted = _wanted(network, only)
    left = [
        f"{name}: {rows[name].reason}"
        for name in wanted
        if rows[name].status != "predicted" and "classifier" not in rows[name].reason
    ]
    predicted = [name for name in wanted if rows[name].status == "predicted"]
    # With a depth fraction only the first of them are written.
    first = predicted[: round(init.depth_fraction * len(predicted))]
    left += [f"{name}: beyond init.depth_fraction" for name in predicted[len(first) :]]
    taken = [name for name in first if name.rpartition("/")[2] in init.kinds]
    left += [f"{name}: not among init.kinds" for name in first if name not in taken]
    return Start(params, None, _record(init.start, init.path, network, taken, left, only))


def _model_folder(path: str) -> Path:
    """Returns the `model/` folder of a workdir, or what is one already."""
    folder = Path(path)
    return folder / MODEL_FOLDER if (folder / MODEL_FOLDER).is_dir() else folder


def _refuse_another(name: str, path: str) -> None:
    """Raises UsageError if a folder's encoder is another network's.

    Names and shapes of a smaller network can all be found in a larger one, whose features they are
    not: a ResNet-18 fits into a ResNet-34.
    """
    _, metadata = load_params(_model_folder(path), "model")
    held = metadata.get("model", {}).get("name", name)
    if zoo.encoder_of(held) != zoo.encoder_of(name):
        raise UsageError(
            f"{path} holds a {held}, and config.model.name={name} has another encoder; choose the "
            "same network, or another start."
        )


def _encoder(config: ml_collections.ConfigDict, network: Network, key: jax.Array) -> Start:
    """The encoder of a network that another run trained, with its batch statistics."""
    init = config.init
    tree, _ = load_params(_model_folder(init.path), "model")
    found = {f"{m}/{leaf}": v for m, leaves in tree["params"].items() for leaf, v in leaves.items()}
    statistics = {
        f"{m}/{leaf}": v
        for m, leaves in tree.get("batch_stats", {}).items()
        for leaf, v in leaves.items()
    }
    return _from_file(init, network, key, found, statistics)


def _weights(config: ml_collections.ConfigDict, network: Network, key: jax.Array) -> Start:
    """Weights under another library's names, such as torchvision's of ImageNet, or BiT's."""
    from medinit_jax.interop.layouts import family_of, from_state
    from medinit_jax.interop.published import weights_file
    from medinit_jax.interop.unfit import strangers, unfit
    from medinit_jax.interop.weights import read_state

    init = config.init.copy_and_resolve_references()
    init.path = weights_file(init.path, config.model.name)
    state = read_state(init.path, init.force)
    found = from_state(config.model.name, network.program, state, init.layout)
    wanted = _wanted(network, _part(init, network))
    params = dict(found.params)
    if init.bit_skip_final_norm:
        if family_of(config.model.name) != "bit":
            raise UsageError(
                "config.init.bit_skip_final_norm=True, but the network is no BiT network; set it "
                "to False."
            )
        params |= _plain_final_norm(network, wanted)
    reasons = {own: why for own, why in unfit(found, wanted).items() if own not in params}
    beside = strangers(found, wanted)
    if not init.force and (reasons or beside) and any(own in params for own in wanted):
        lines = [*reasons.values(), *(f"{name} has no place in the network" for name in beside)]
        more = f"; and {len(lines) - _MOST_LINES} more" if len(lines) > _MOST_LINES else ""
        raise UsageError(
            f"{init.path} (read as {found.layout}) fits {config.model.name} in part only: "
            f"{'; '.join(lines[:_MOST_LINES])}{more}. Name the same network (config.model), or set "
            "config.init.force=True to take what fits."
        )
    unused = [f"{name} of the file: the network has no place for it" for name in found.unused]
    start = _from_file(init, network, key, params, found.statistics, unused, reasons)
    start.record["layout"] = found.layout
    return start


def _plain_final_norm(network: Network, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """The norm after a BiT network's last block as it starts, for what SWCL's authors leave out."""
    shapes = network.program.parameter_shapes()
    plain = {}
    for leaf, value in (("scale", np.ones), ("bias", np.zeros)):
        for own in (f"norm/{leaf}", f"{ENCODER}.norm/{leaf}"):
            if own in wanted:
                plain[own] = value(shapes[own.rpartition("/")[0]][leaf], np.float32)
    return plain


def _from_file(
    init: ml_collections.ConfigDict,
    network: Network,
    key: jax.Array,
    found: Mapping[str, np.ndarray],
    statistics: Mapping[str, np.ndarray],
    unused: Sequence[str] = (),
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> Start:
    """Puts tensors into a network by name and shape; heads are never taken.

    Args:
        init: `config.init`.
        network: The network.
        key: Of what the file does not give.
        found: {"module/leaf": array}.
        statistics: {"module.stats/mean" or "/var": array}.
        unused: Lines about what the network has no place for.
        reasons: {"module/leaf": why it is not in `found`}, where that is known.
    """
    program = network.program
    params = initial_parameters(program, key)
    batch_stats = initial_statistics(program)
    only = _part(init, network)
    left, taken = [], []
    for name in _wanted(network, only):
        value = _of(found, name)
        module, leaf = name.rsplit("/", 1)
        shape = params[module][leaf].shape
        if value is None:
            left.append(f"{name}: {reasons.get(name, 'not in the file')}")
        elif value.shape != shape:
            left.append(f"{name}: {value.shape} in the file, {shape} here")
        else:
            params[module][leaf] = jnp.asarray(value, jnp.float32)
            taken.append(name)
    if not taken:
        names = [*sorted(found), *(line.split(" ")[0] for line in unused)]
        example = ", ".join(names[:3]) or "no tensor at all"
        raise UsageError(
            f"Nothing in {init.path} fits the encoder of this network (the file has {example}; of "
            f"the network, {'; '.join(left[:3])}); choose the same network (config.model, its "
            "width too) or another file."
        )
    # Statistics come along with the norm that they belong to, never alone.
    modules = {name.rsplit("/", 1)[0] for name in taken}
    missing = 0
    for name, leaves in batch_stats.items():
        values = {leaf: _of(statistics, f"{name}/{leaf}") for leaf in leaves}
        fits = all(v is not None and v.shape == leaves[k].shape for k, v in values.items())
        if name.removesuffix(".stats") not in modules:
            # The head's or decoder's own, which begin with it.
            continue
        if fits:
            leaves.update({leaf: jnp.asarray(v, jnp.float32) for leaf, v in values.items()})
        else:
            missing += 1
    record = _record(init.start, init.path, network, taken, [*left, *unused], only)
    if missing:
        record["remarks"].append(
            f"{missing} norms came without batch statistics, so all are estimated on the training "
            "images."
        )
    return Start(params, None if missing else batch_stats, record)


def _of(found: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    """Returns a tensor under its name, or under the name with or without the encoder's prefix."""
    for other in (name, f"{ENCODER}.{name}", name.removeprefix(f"{ENCODER}.")):
        if other in found:
            return np.asarray(found[other])
    return None


def _part(init: ml_collections.ConfigDict, network: Network) -> str:
    """Returns the part of the network that the start writes; "" for all of it."""
    if init.only != "auto":
        return init.only
    names = network.program.parameter_shapes()
    return ENCODER if any(is_below(name, (ENCODER,)) for name in names) else ""


def _wanted(network: Network, only: str) -> list[str]:
    """Returns "module/leaf" of all tensors that a start could write: those outside of the head."""
    program = network.program
    kept = head_modules(program) if only else (program.head,)
    return [
        f"{module}/{leaf}"
        for module, leaves in program.parameter_shapes().items()
        for leaf in leaves
        if module not in kept and (not only or is_below(module, (only,)))
    ]


def _record(name: str, path: str, network: Network, taken: Any, left: Any, only: str = "") -> dict:
    total = sum(len(leaves) for leaves in network.program.parameter_shapes().values())
    remarks = [f"Only {only} was started; the rest keeps its own init."] if only else []
    return {
        "name": name, "path": str(path), "taken": len(taken), "of": total, "left": list(left),
        "remarks": remarks,
    }  # fmt: skip


def _at(params: Any, name: str) -> Any:
    module, leaf = name.rsplit("/", 1)
    return params[module][leaf]


STARTS: dict[str, Maker] = {
    "random": _random,
    "torch_default": _torch_default,
    "hyper": _hyper,
    "matched": _hyper,
    "untrained": _hyper,
    "encoder": _encoder,
    **dict.fromkeys(("torch", "imagenet", "file", "bit"), _weights),
}
_HYPER_PATH = "the workdir of a run of configs/hyper.py, or its initializer/ folder"
_PATHS = {
    **dict.fromkeys(("hyper", "matched", "untrained"), _HYPER_PATH),
    "encoder": "the workdir of a fine-tuning or pretraining, or its model/ folder",
    "imagenet": (
        "torchvision or timm, for what these have downloaded before (torchvision:IMAGENET1K_V1 for "
        "other weights than their default), or a .safetensors or .pth file with such weights of "
        "the same network; nothing is downloaded here"
    ),
    **dict.fromkeys(
        ("torch", "file"),
        "a .safetensors, .pth or .npz file with weights under the names of torchvision, timm, "
        "segmentation-models-pytorch, SWCL's authors or BiT; or torchvision or timm",
    ),
    "bit": "BiT-S-R50x1.npz or BiT-M-R50x1.npz, as its authors publish them",
}
