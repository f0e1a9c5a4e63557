"""Supervised contrastive loss with several labels per image, on one device or many.

For anchor i with logits s_ik = z_i . z_k / temperature, the loss of a row is

    log sum_{k != i} exp s_ik  -  sum_j w_ij s_ij / sum_j w_ij

Only the first term needs every pair, and it knows nothing of labels: see `repulsion`. The second
term is linear in the positives: sums over classes give it without looking at pairs.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from medinit_jax.core import parallel
from medinit_jax.core.errors import UsageError
from medinit_jax.losses.repulsion import repulsion
from medinit_jax.losses.vectors import unit, wide

# Weight of a positive from the number of its equal columns and the number of columns.
MATCHES = {
    "all": lambda equal, columns: float(equal == columns),
    "any": lambda equal, columns: float(equal > 0),
    "jaccard": lambda equal, columns: equal / (2 * columns - equal),
}
_HIGHEST = jax.lax.Precision.HIGHEST


def supcon(
    z: jax.Array,
    labels: jax.Array | None = None,
    *,
    temperature: float = 0.1,
    base_temperature: float | None = None,
    match: str = "all",
    reduction: str = "mean",
    drop_empty: bool = False,
    contrast: str = "all",
    normalize: bool = False,
    chunk: int = 512,
    gathered: bool = False,
) -> jax.Array:
    """Returns the multi-label supervised contrastive loss of a batch.

    Every view is an anchor; all other views stand in the denominator, positives too. An anchor
    without positives adds 0, and still counts in the mean unless `drop_empty` is set. Logits are
    float32 if `z` is narrower, and float64 if it is. The matrix of all logits is never held, not
    for the gradient either: memory grows with `chunk` times the number of views. The gradient is
    computed together with the value, and no forward-mode derivative exists.

    Args:
        z: Float (B, V, D), V views of B images, of unit length unless `normalize` is set.
        labels: int (B,) or (B, L), the columns to compare; None: an image's positives are its own
            other views (SimCLR).
        temperature: Divides the logits.
        base_temperature: The loss is multiplied by `temperature / base_temperature`; None: by 1.
        match: Which views are positives of an anchor. "all": those with all L columns equal;
            "any": with any column equal; "jaccard": as "any", and weighted by
            equal / (2L - equal), the share of equal columns among all different labels of the
            two, over the sum of the weights. The last two take time in proportion to 2^L.
        reduction: "mean" over the anchors, or the "sum" of the paper.
        drop_empty: Leave anchors without positives out of the mean.
        contrast: "all": all views are anchors; "one": first views only.
        normalize: Scale `z` to unit length first.
        chunk: Anchors that are scored at a time; no result depends on it but for rounding.
        gathered: `z` and `labels` are one device's part; see `gathered_supcon`.

    Returns:
        Float32 or float64 scalar.

    Raises:
        UsageError: An option has no such value, or shapes do not fit.

    Source: SupCon (arXiv 2004.11362), Eq. 2; SWCL (arXiv 2108.02122), Eq. 1. Rows without
        positives are those of SupContrast after its pull request 142.
    """
    _check(z, labels, match=match, reduction=reduction, contrast=contrast, chunk=chunk)
    z = wide(z)
    if normalize:
        z = unit(z)
    images, first = z.shape[0], 0
    if gathered:
        first = parallel.position() * images
        z, labels = parallel.all_gather((z, labels))
    count, views = z.shape[:2]
    # One factor for both sides of every product.
    z = z / jnp.sqrt(temperature)
    seen = z[:, : 1 if contrast == "one" else views]
    pull, has_positives = _attraction(z, seen, _columns(labels, count), match)
    used = has_positives.astype(z.dtype)
    mine = first + jnp.arange(images, dtype=jnp.int32)
    own = (count * jnp.arange(seen.shape[1], dtype=jnp.int32)[:, None] + mine).reshape(-1)
    everything = seen.shape[1] == views and not gathered
    weight = jnp.tile(used[mine], seen.shape[1])
    total: jax.Array = repulsion(_flat(z), None if everything else own, weight, chunk)
    total -= pull[mine].sum()
    total *= temperature / (temperature if base_temperature is None else base_temperature)
    anchors = weight.sum() if drop_empty else jnp.full_like(weight, 1).sum()
    if gathered:
        total, anchors = parallel.all_sum((total, anchors))
    return total if reduction == "sum" else total / jnp.maximum(anchors, 1)


def gathered_supcon(z: jax.Array, labels: jax.Array | None = None, **options: Any) -> jax.Array:
    """Returns the loss of the batch of all devices, inside a function given to `Parallel.sharded`.

    Each device scores its own anchors against everybody's views. Value and gradient are those of
    `supcon` on the whole batch on one device.

    Args:
        z: Float (B, V, D), this device's images.
        labels: int (B,) or (B, L) of these, or None.
        **options: As `supcon` has them.

    Returns:
        Float32 or float64 scalar, the same on every device.
    """
    return supcon(z, labels, gathered=True, **options)


def contrastive_figures(
    z: jax.Array, labels: jax.Array | None = None, match: str = "all"
) -> dict[str, jax.Array]:
    """Returns what a training of this loss should log; holds the matrix of all pairs.

    Args:
        z: Float (B, V, D), scaled to unit length here.
        labels: As `supcon` has them.
        match: As `supcon` has it; "jaccard" weighs the alignment.

    Returns:
        Float scalars. `alignment`: mean squared distance of positives, NaN without any;
        `uniformity`: log of the mean of exp(-2 squared distance) over all pairs of views;
        `positives`: sum of the positives' weights, mean over the anchors (for "all" and "any"
        their number).

    Source: Wang & Isola (arXiv 2005.10242), Eq. 4 and 5, with exponents 2 and 2.
    """
    _check(z, labels, match=match)
    rows = _flat(unit(z))
    columns = jnp.tile(_columns(labels, z.shape[0]), (z.shape[1], 1))
    size, length = columns.shape
    other = ~jnp.eye(size, dtype=bool)
    distance = jnp.maximum(2 - 2 * jnp.matmul(rows, rows.T, precision=_HIGHEST), 0)
    equal = (columns[:, None] == columns[None]).sum(-1)
    table = jnp.array([MATCHES[match](n, length) for n in range(length + 1)], rows.dtype)
    weight = jnp.where(other, table[equal], 0)
    pairs = size * (size - 1)
    return {
        "alignment": (weight * distance).sum() / weight.sum(),
        "uniformity": jnp.log(jnp.where(other, jnp.exp(-2 * distance), 0).sum() / pairs),
        "positives": weight.sum() / size,
    }


def collapse(loss: jax.Array, views: int) -> jax.Array:
    """Returns how far a mean loss is from that of an encoder that maps everything to one point.

    Args:
        loss: Float scalar, of `supcon` with the temperatures equal and no anchor without positives.
        views: Rows in the batch, 2N for two views of N images.

    Returns:
        |loss - ln(views - 1)|; a training that stays near 0 has collapsed.
    """
    return jnp.abs(loss - math.log(views - 1))


def _check(z, labels, **options) -> None:
    allowed = {"match": tuple(MATCHES), "reduction": ("mean", "sum"), "contrast": ("all", "one")}
    for name, value in options.items():
        if name in allowed and value not in allowed[name]:
            raise UsageError(
                f"The contrastive loss has no {name}={value!r}; choose from "
                f"{', '.join(allowed[name])}."
            )
    if options.get("chunk", 1) < 1:
        raise UsageError(
            f"The contrastive loss cannot score chunk={options['chunk']} anchors at a time; give "
            "at least 1."
        )
    if z.ndim != 3 or (labels is not None and labels.shape[:1] != z.shape[:1]):
        raise UsageError(
            f"The contrastive loss got z of shape {z.shape} and labels of shape "
            f"{None if labels is None else labels.shape}; it needs (images, views, features) and "
            "(images,) or (images, columns)."
        )


def _flat(z):
    """(B, V, D) -> (V B, D): all first views, then all second views."""
    return z.swapaxes(0, 1).reshape(-1, z.shape[-1])


def _columns(labels, images: int):
    if labels is None:
        return jnp.arange(images)[:, None]
    return labels.reshape(images, -1)


def _attraction(z, anchors, columns, match: str):
    """Returns every image's sum over its anchors of the mean logit of their positives.

    A weight f(number of equal columns) is a sum over sets of columns, c(set) [all columns of the
    set equal], by inclusion and exclusion; every term of it divides the images into classes.

    Args:
        z: Float (B, V, D).
        anchors: Float (B, A, D), those views of `z` that are anchors.
        columns: int (B, L).
        match: One of `MATCHES`.

    Returns:
        Float (B,), 0 where there are no positives, and bool (B,), where there are any.
    """
    images, views, _ = z.shape
    logits = -jnp.einsum("bad,bad->b", anchors, anchors, precision=_HIGHEST)
    weight = jnp.zeros_like(logits)
    for chosen, factor in _terms(match, columns.shape[1]):
        classes = _classes(columns[:, chosen])
        sums = jax.ops.segment_sum(z.sum(1), classes, images)[classes]
        sizes = jax.ops.segment_sum(jnp.full_like(weight, views), classes, images)[classes]
        logits += factor * (anchors.sum(1) * sums).sum(-1)
        # Every view is in each of its own classes; the factors of all sets add up to 1.
        weight += factor * (sizes - 1)
    return jnp.where(weight > 0, logits / jnp.where(weight > 0, weight, 1), 0), weight > 0


def _terms(match: str, columns: int) -> list[tuple[tuple[int, ...], float]]:
    """Returns the sets of columns whose factor is not 0, with it."""
    factors: list[float] = []
    for size in range(1, columns + 1):
        smaller = sum(math.comb(size, n) * factors[n - 1] for n in range(1, size))
        factors.append(MATCHES[match](size, columns) - smaller)
    sizes = [n for n in range(1, columns + 1) if factors[n - 1]]
    return [(s, factors[n - 1]) for n in sizes for s in itertools.combinations(range(columns), n)]


def _classes(columns):
    """(B, L) -> (B,): numbers from 0 that are equal if and only if the rows are."""
    order = jnp.lexsort(columns.T)
    ordered = columns[order]
    new = (ordered[1:] != ordered[:-1]).any(-1).astype(jnp.int32)
    numbers = jnp.pad(jnp.cumsum(new), (1, 0))
    return jnp.zeros_like(numbers).at[order].set(numbers)
