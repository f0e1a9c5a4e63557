"""Optimizers and learning-rate schedules, made from a config."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from medinit_jax.core.errors import UsageError


def _sgd(
    config: ml_collections.ConfigDict, decay: optax.GradientTransformation
) -> optax.GradientTransformation:
    momentum, nesterov = config.get("momentum", 0.9), config.get("nesterov", False)
    return optax.chain(decay, optax.trace(decay=momentum, nesterov=nesterov))


def _adam(
    config: ml_collections.ConfigDict, decay: optax.GradientTransformation
) -> optax.GradientTransformation:
    del config
    return optax.chain(decay, optax.scale_by_adam())


def _adamw(
    config: ml_collections.ConfigDict, decay: optax.GradientTransformation
) -> optax.GradientTransformation:
    del config
    return optax.chain(optax.scale_by_adam(), decay)


OPTIMIZERS = {"adamw": _adamw, "adam": _adam, "sgd": _sgd}


def _cosine(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(config.learning_rate, steps)


def _constant(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    del steps
    return optax.constant_schedule(config.learning_rate)


def _step(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    del steps
    if "milestones" not in config or "decay" not in config:
        raise UsageError(
            "The config has schedule='step' without milestones and decay; set milestones to the "
            "steps at which the learning rate falls and decay to its factor."
        )
    if not config.decay > 0:
        raise UsageError(f"The config has decay={config.decay}; set it above 0.")
    # Boundaries count from the first step, as milestones do, not from the end of the warm-up.
    drops = {int(step) - config.warmup_steps: config.decay for step in config.milestones}
    return optax.piecewise_constant_schedule(config.learning_rate, drops)


SCHEDULES = {"cosine": _cosine, "constant": _constant, "step": _step}
# What only one of them reads: where it is not chosen, these keys have to be as they are here.
_ONLY = {
    "name": {"sgd": {"momentum": 0.9, "nesterov": False}},
    "schedule": {"step": {"milestones": (), "decay": 0.1}},
}


def _choose(table: dict[str, Any], key: str, config: ml_collections.ConfigDict) -> Any:
    """Returns what a key names; refuses settings that something else of the table reads."""
    name = config[key]
    if name not in table:
        raise UsageError(f"The config has {key}={name!r}; set it to one of {', '.join(table)}.")
    for reader, settings in _ONLY[key].items():
        for other, plain in settings.items():
            # A list is what JSON makes of a tuple.
            if name != reader and type(plain)(config.get(other, plain)) != plain:
                raise UsageError(
                    f"The config changes optim.{other}, which does nothing with "
                    f"optim.{key}={name}; leave it at {plain!r}, or set optim.{key}={reader}."
                )
    return table[name]


def create_decay(config: ml_collections.ConfigDict) -> float | optax.Schedule:
    """Returns weight decay: a number, or a cosine from the first update to the last.

    Args:
        config: `weight_decay`, `total_steps`, and `weight_decay_end`, to which it goes (absent or
            0: it stays as it is).

    Returns:
        The decay, or step -> decay.

    Raises:
        UsageError: One of them is negative.

    Source:
        Caron et al., Emerging Properties in Self-Supervised Vision Transformers (arXiv 2104.14294),
        section 3.2: from 0.04 to 0.4.
    """
    first, last = config.weight_decay, config.get("weight_decay_end", 0.0)
    if min(first, last) < 0:
        raise UsageError(
            f"The config has weight_decay={first} and weight_decay_end={last}; set them to at "
            "least 0."
        )
    if not last:
        return first

    def decay(step: jax.Array) -> jax.Array:
        share = jnp.minimum(step / config.total_steps, 1.0)
        return last + (first - last) * (1 + jnp.cos(jnp.pi * share)) / 2

    return _promoting(decay)


def create_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    A linear warm-up from 0 over `warmup_steps`, then the named schedule over the steps that are
    left; `cosine` ends at 0, `step` multiplies by `decay` at each of the steps `milestones`.

    Args:
        config: `schedule` (cosine, constant, step), `learning_rate`, `warmup_steps`,
            `total_steps`; for step `decay` and `milestones`.

    Returns:
        step -> learning rate.

    Raises:
        UsageError: an unknown schedule, a warm-up that leaves no step, a step schedule without
            milestones or a positive decay, or these two changed under another schedule.
    """
    warmup, total = config.warmup_steps, config.total_steps
    if not 0 <= warmup < total:
        raise UsageError(
            f"The config has warmup_steps={warmup} and total_steps={total}; "
            "set warmup_steps to at least 0 and below total_steps."
        )
    body = _choose(SCHEDULES, "schedule", config)(config, total - warmup)
    if not warmup:
        return _promoting(body)
    ramp = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return _promoting(optax.join_schedules([ramp, body], [warmup]))


def create(
    config: ml_collections.ConfigDict,
    decay_mask: Callable[[Any], Any] | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the optimizer that a config describes, and its schedule.

    Order of a step: clip the global norm, decay, update. Decay is decoupled for `adamw` and a
    gradient term for `adam` and `sgd`, as in PyTorch. Adam's moments are 0.9 and 0.999.

    Args:
        config: the keys of `create_schedule`, those of `create_decay`, `name` (adamw, adam, sgd)
            and `clip`, the largest global norm of the gradient (0 = no clipping); for sgd also
            `momentum` (0.9) and `nesterov` (False).
        decay_mask: params -> pytree of bool, which of them decay; None = all.

    Returns:
        The optimizer, and step -> learning rate.

    Raises:
        UsageError: an unknown name, a schedule or decay that makes no sense, or momentum settings
            changed under another optimizer than sgd.

    Source:
        Loshchilov and Hutter, Decoupled Weight Decay Regularization (AdamW).
    """
    schedule = create_schedule(config)
    build = _choose(OPTIMIZERS, "name", config)
    shrink, decay = create_decay(config), optax.identity()
    if shrink:
        decay = optax.add_decayed_weights(shrink, decay_mask)
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
    chain = optax.chain(clip, build(config, decay), optax.scale_by_learning_rate(schedule))
    return optax.GradientTransformation(chain.init, _promoting(chain.update)), schedule


def _promoting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets optax mix dtypes, which it does with float powers of its integer step count."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return wrapped
