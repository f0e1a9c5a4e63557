"""What training carries from one step to the next."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from medinit_jax.core.parallel import Parallel

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
    divide: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one optimizer step, or leaves it out when the loss or a gradient is not finite.

    A skipped step counts in `step` and in `skipped`; parameters, moments and the schedule's count
    stay as they were. The choice is made on the device, so nothing waits for it.

    Args:
        state: the state before the step.
        gradients: pytree like `state.params`.
        optimizer: the transformation that `state.opt_state` belongs to.
        loss: () value that must be finite too, or None.
        divide: as `divider` returns it.

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
        opt_state=divide(keep(opt_state, state.opt_state)),
        skipped=state.skipped + skipped,
    )
    return state, {"grad_norm": norm, "skipped": skipped.astype(jnp.float32)}


def divider(parallel: Parallel | None, sharded: bool) -> Callable[[PyTree], PyTree]:
    """Returns what keeps the optimizer's state as `place` puts it, inside a compiled step.

    Args:
        parallel: the devices; None = wherever the state lies, undivided.
        sharded: as `place` has it.
    """
    return parallel.keep_divided if parallel and sharded else lambda tree: tree


def places(parallel: Parallel, sharded: bool) -> TrainState:
    """Returns where a step leaves its state, for `jit`'s `out_shardings`.

    Args:
        parallel: the devices.
        sharded: as `place` has it; what is divided is then said by `divider`.
    """
    everywhere: Any = parallel.everywhere
    return TrainState(everywhere, everywhere, None if sharded else everywhere, everywhere)


def place(held: Any, parallel: Parallel, sharded: bool = False) -> Any:
    """Puts a state on the devices: a copy on each, or of the optimizer's state a part.

    Args:
        held: a `TrainState`, or a state that has one as `train`; what lies where it belongs, as
            after a checkpoint was restored into such a state, is not moved.
        parallel: the devices.
        sharded: whether the optimizer's state is divided among the devices.

    Returns:
        The same state, there.

    Source:
        Rajbhandari et al., ZeRO (arXiv 1910.02054), section 5.1: optimizer state partitioning.
    """
    if not isinstance(held, TrainState):
        train = place(held.train, parallel, sharded)
        return parallel.replicate(held.replace(train=None)).replace(train=train)
    put = parallel.divide if sharded else parallel.replicate
    rest = parallel.replicate(dataclasses.replace(held, opt_state=()))
    return dataclasses.replace(rest, opt_state=put(held.opt_state))
