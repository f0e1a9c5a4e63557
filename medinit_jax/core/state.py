"""What training carries from one step to the next."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and writes, and nothing else.

    Attributes:
        step: int32 (), steps taken, skipped ones included.
        params: pytree of arrays that the optimizer trains.
        opt_state: the optimizer's state for `params`.
        skipped: int32 (), steps whose update was left out because it was not finite.
    """

    step: jax.Array
    params: PyTree
    opt_state: optax.OptState
    skipped: jax.Array


def create(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step.

    Args:
        params: pytree of arrays to train.
        optimizer: as made by `core.optim.create`.

    Returns:
        A `TrainState` at step 0.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
    )


def apply_gradients(
    state: TrainState,
    gradients: PyTree,
    optimizer: optax.GradientTransformation,
    loss: jax.Array | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one optimizer step, or leaves it out when the loss or a gradient is not finite.

    A skipped step counts in `step` and in `skipped`; parameters, moments and the schedule's count
    stay as they were. The choice is made on the device, so nothing waits for it.

    Args:
        state: the state before the step.
        gradients: pytree like `state.params`.
        optimizer: the transformation that `state.opt_state` belongs to.
        loss: () value that must be finite too, or None.

    Returns:
        The state after the step, and `grad_norm` float () before clipping and `skipped` float32 ()
        of 0 or 1.
    """
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(norm)
    if loss is not None:
        finite &= jnp.isfinite(loss)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    def keep(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    skipped = (~finite).astype(jnp.int32)
    state = TrainState(
        step=state.step + 1,
        params=keep(params, state.params),
        opt_state=keep(opt_state, state.opt_state),
        skipped=state.skipped + skipped,
    )
    return state, {"grad_norm": norm, "skipped": skipped.astype(jnp.float32)}
