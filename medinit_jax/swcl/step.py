"""One update of an encoder and its heads, compiled once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from medinit_jax.core import optim, state
from medinit_jax.core.compiler import jit
from medinit_jax.core.parallel import Parallel
from medinit_jax.finetune.layers import DECAYED
from medinit_jax.losses.vectors import wide
from medinit_jax.models.features import features
from medinit_jax.models.network import Network
from medinit_jax.swcl.distillation import ema, momentum
from medinit_jax.swcl.method import Apply, Method, Seen


@flax.struct.dataclass
class PretrainState:
    """What pretraining carries from one step to the next.

    Attributes:
        train: Parameters {"encoder", "heads"}, optimizer and counts.
        statistics: Running batch statistics of encoder and heads, likewise.
        target: Averaged {"params"} with "statistics" of its own; {} where the method needs none.
        memory: What the method remembers.
    """

    train: state.TrainState
    statistics: Any
    target: Any
    memory: Any

    @property
    def step(self) -> jax.Array:
        """Steps taken, skipped ones included."""
        return self.train.step

    @property
    def skipped(self) -> jax.Array:
        """Steps whose update was left out because it was not finite."""
        return self.train.skipped


class Recipe(NamedTuple):
    """What the compiled step depends on; hashable.

    Attributes:
        network: The encoder, with a head that is not used.
        method: The method.
        channels: Of the features.
        optimizer: Items of `core.optim.create`'s configuration, with `total_steps`.
        steps_per_epoch: Steps that show every image once.
        ema: First momentum of the average.
        bn_group: Views over which batch statistics of encoder and heads are taken; 0: those of the
            whole batch, over all devices.
        frozen_epochs: Epochs in which the last layer of the heads stays as it is.
    """

    network: Network
    method: Method
    channels: int
    optimizer: tuple[tuple[str, Any], ...]
    steps_per_epoch: int
    ema: float = 0.996
    bn_group: int = 0
    frozen_epochs: int = 0

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return dict(self.optimizer)["total_steps"]


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Returns the optimizer of encoder and heads."""
    return optim.create(ml_collections.ConfigDict(dict(recipe.optimizer)), decay_mask)[0]


def decay_mask(params: Any) -> Any:
    """Returns which leaves of a tree weight decay shrinks."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def first_state(
    recipe: Recipe, encoder: Mapping[str, Any], statistics: Mapping[str, Any], key: jax.Array
) -> PretrainState:
    """Returns the state before the first step, with heads drawn at random.

    Args:
        recipe: What is trained.
        encoder: Parameters {module: {leaf: array}} of the encoder without its head.
        statistics: Its batch statistics.
        key: Random key.
    """
    heads, head_statistics = {}, {}
    rows: Any = jnp.zeros((2, recipe.channels))
    for number, (name, head) in enumerate(recipe.method.heads().items()):
        rows, made = head.init_with_output(jax.random.fold_in(key, number), rows)
        heads[name] = made["params"]
        head_statistics[name] = made.get("batch_stats", {})
    # Copies: the step writes into its state, and a start may be used again.
    params = jax.tree.map(jnp.array, {"encoder": dict(encoder), "heads": heads})
    held = jax.tree.map(jnp.array, {"encoder": dict(statistics), "heads": head_statistics})
    target = {}
    if recipe.method.averaged:
        target = jax.tree.map(jnp.copy, {"params": params, "statistics": held})
    memory = recipe.method.memory(jax.random.fold_in(key, 1 << 16))
    return PretrainState(state.create(params, make_optimizer(recipe)), held, target, memory)


@functools.lru_cache(maxsize=4)
def compiled(recipe: Recipe, parallel: Parallel) -> Callable[..., Any]:
    """Returns (state, images, labels) -> (state, metrics), compiled.

    Images are a tuple of float32 (batch, views, S, S, 3) of different sizes, whose first has the
    views that an average sees; labels {name: int32 (batch, ...)}; both lie split over the devices.
    """
    optimizer = make_optimizer(recipe)
    method = recipe.method
    heads = method.heads()
    sharded = dict(recipe.optimizer).get("sharded", False)
    divide = state.divider(parallel, sharded)

    def step(
        current: PretrainState, images: tuple[jax.Array, ...], labels: Mapping[str, jax.Array]
    ):
        target = _averaged(recipe, current)

        def loss(params):
            pooled, statistics = _encode(recipe, params, current.statistics, images)
            moved = dict(statistics["heads"])
            own = other = _heads(recipe, heads, params, moved)
            aims, theirs = None, {}
            if method.averaged:
                aims, theirs = _encode(recipe, target["params"], target["statistics"], images[:1])
                aims, theirs = jax.lax.stop_gradient((aims, theirs))
                theirs["heads"] = dict(theirs["heads"])
                other = _heads(recipe, heads, target["params"], theirs["heads"])
            seen = Seen(
                pooled,
                aims,
                labels,
                current.step,
                current.step.astype(jnp.float32) / recipe.steps_per_epoch,
                current.memory,
            )
            judged = method.judge(own, other, seen, parallel)
            statistics = {**statistics, "heads": moved}
            return judged.loss, (judged.figures, judged.memory, statistics, theirs)

        (value, (figures, memory, statistics, theirs)), gradient = jax.value_and_grad(
            loss, has_aux=True
        )(current.train.params)
        if method.averaged:
            target = {**target, "statistics": theirs}

        def update(gradient: Any, own: Any, params: Any = None):
            updates, own = optimizer.update(gradient, own, params)
            return _without_last_layer(recipe, updates, current.step), own

        held = optax.GradientTransformation(optimizer.init, update)  # pyright: ignore
        train, metrics = state.apply_gradients(current.train, gradient, held, value, divide)
        taken = metrics["skipped"] == 0
        statistics, target, memory = jax.tree.map(
            lambda new, old: jnp.where(taken, new, old),
            (statistics, target, memory),
            (current.statistics, current.target, current.memory),
        )
        metrics = {
            "train/loss": value,
            **{f"train/{name}": figure for name, figure in figures.items()},
            "train/grad_norm": metrics["grad_norm"],
            "skipped": metrics["skipped"],
        }
        return PretrainState(train, statistics, target, memory), metrics

    everywhere = parallel.everywhere
    train = state.places(parallel, sharded)
    place = PretrainState(train, everywhere, everywhere, everywhere)
    return jit(step, donate_argnums=0, out_shardings=(place, everywhere))


def _averaged(recipe: Recipe, current: PretrainState) -> Any:
    """Moves the average towards the parameters before a step; before the first they are equal.

    Its batch statistics are no average: it gathers its own from the batches that it sees, so that
    they fit its features however short the training is.

    Source: SWCL's code, for parameters; it has no batch normalization.
    """
    if not recipe.method.averaged:
        return {}
    rate = momentum(current.step, recipe.total_steps, recipe.ema)
    held = current.target["params"]
    moved = ema(held, current.train.params, rate)
    params = jax.tree.map(lambda new, old: jnp.where(current.step > 0, new, old), moved, held)
    return {**current.target, "params": params}


def _encode(recipe: Recipe, params: Any, statistics: Any, images: tuple[jax.Array, ...]):
    """Returns features float32 (batch, views, channels) of all views, and new statistics."""
    pooled = []
    held = statistics["encoder"]
    for part in images:
        batch, views = part.shape[:2]
        flat = part.reshape(batch * views, *part.shape[2:])
        found, held = _features(recipe, params["encoder"], held, flat)
        pooled.append(found.reshape(batch, views, -1))
    return jnp.concatenate(pooled, axis=1), {**statistics, "encoder": held}


def _features(recipe: Recipe, params: Any, statistics: Any, images: jax.Array):
    def run(images):
        found = features(
            recipe.network, {"params": params, "batch_stats": statistics}, images, train=True
        )
        return wide(found.pooled), found.batch_stats

    return _in_groups(run, images, recipe.bn_group) if statistics else run(images)


def _in_groups(run: Callable[[jax.Array], Any], rows: jax.Array, group: int):
    """Runs rows -> (rows, statistics) on each group, and averages the groups' statistics."""
    if not group:
        return run(rows)
    found, moved = jax.vmap(run)(rows.reshape(-1, group, *rows.shape[1:]))
    return found.reshape(len(rows), *found.shape[2:]), jax.tree.map(lambda x: x.mean(0), moved)


def _heads(
    recipe: Recipe, heads: Mapping[str, Any], params: Any, statistics: dict[str, Any]
) -> Apply:
    """Returns (head, rows) -> rows; batch statistics of heads move in `statistics`."""

    def apply(name: str, rows: jax.Array) -> Any:
        held = {"params": params["heads"][name]}
        if not statistics[name]:
            return heads[name].apply(held, rows)
        held["batch_stats"] = statistics[name]

        def run(rows):
            found, new = heads[name].apply(held, rows, train=True, mutable=["batch_stats"])
            return found, new["batch_stats"]

        found, statistics[name] = _in_groups(run, rows, recipe.bn_group)
        return found

    return apply


def _without_last_layer(recipe: Recipe, updates: Any, step: jax.Array) -> Any:
    """Leaves the heads' last layer as it is in the first epochs (official DINO).

    It is the update that is left out, not the gradient: decay would go on, and moments that had
    only seen zeros would give the first steps afterwards the wrong length.
    """
    if not recipe.frozen_epochs:
        return updates
    frozen = step < recipe.frozen_epochs * recipe.steps_per_epoch

    def keep(path, value):
        last = any(getattr(key, "key", "").endswith("last_layer") for key in path)
        return jnp.where(frozen, jnp.zeros_like(value), value) if last else value

    return jax.tree_util.tree_map_with_path(keep, updates)
