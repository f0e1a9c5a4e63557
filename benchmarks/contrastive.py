"""Time and memory of the contrastive and triplet losses, against plain PyTorch and the cubic form.

    python benchmarks/contrastive.py [--json] [--repeats 9]

Both sides compute loss and gradient, in turn in one process with the memory settings that PyTorch
needs, again and again; a ratio is that of the medians, theirs over ours. Values and gradients are
compared before anything is timed. Bytes between devices are read off the program that XLA made for
four virtual devices.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from bilevel import in_fair_environment

from medinit_jax.core.parallel import Parallel
from medinit_jax.losses.labels import label_columns
from medinit_jax.losses.supcon import gathered_supcon, supcon
from medinit_jax.swcl.triplet import semi_hard

FEATURES = 128
DEVICES = 4
TRAINING = 992  # views of a step of SWCL's own training


def batch(views: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns unit vectors float32 (B, 2, D), and the three label columns int32 (B, 3)."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((views // 2, 2, FEATURES), np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    # Both eyes of a patch of a patient follow one another.
    pairs = np.arange(views // 2) // 2
    labels = label_columns("all", pairs % 5, rng.integers(0, 2, len(z)), pairs // 5)
    return z, labels


def torch_supcon(z: torch.Tensor, labels: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """The formulation of SupContrast: whole matrices of logits and masks, (B, V, D) and (B,)."""
    images, views, _ = z.shape
    rows = torch.cat(torch.unbind(z, dim=1))
    logits = rows @ rows.T / temperature
    logits = logits - logits.max(dim=1, keepdim=True).values.detach()
    other = 1 - torch.eye(images * views)
    positive = (labels[:, None] == labels[None]).float().repeat(views, views) * other
    log = logits - (logits.exp() * other).sum(1, keepdim=True).log()
    return -((positive * log).sum(1) / positive.sum(1).clamp(min=1)).mean()


def cubic(z: jax.Array, identities: jax.Array, margin: float = 0.5) -> jax.Array:
    """The semi-hard triplet loss over all triples at once."""
    squares = (z * z).sum(-1)
    itself = jnp.eye(len(z), dtype=bool)
    distances = jnp.maximum(squares[:, None] + squares[None] - 2 * z @ z.T, 0)
    distances = jnp.where(itself, 0, distances)
    negative = identities[:, None] != identities[None]
    farther = negative[:, None] & (distances[:, None] > distances[:, :, None])
    nearest = jnp.where(farther, distances[:, None], jnp.inf).min(-1)
    farthest = jnp.where(negative, distances, -jnp.inf).max(-1, keepdims=True)
    chosen = jnp.where(farther.any(-1), nearest, farthest)
    pairs = ~negative & ~itself
    losses = jnp.where(pairs, jnp.maximum(margin + distances - chosen, 0), 0)
    return losses.sum() / pairs.sum().astype(z.dtype)


def numbered(labels: np.ndarray) -> np.ndarray:
    """Returns one integer for each label (n, columns), as plain PyTorch code compares them."""
    return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)


def contrastive(views: int, repeats: int) -> dict[str, Any]:
    """Times ours against PyTorch."""
    z, labels = batch(views)
    numbers = torch.from_numpy(numbered(labels))
    leaf = torch.from_numpy(z.copy()).requires_grad_()
    compiled = jax.jit(jax.value_and_grad(supcon))
    given = jnp.asarray(z), jnp.asarray(labels)

    def ours() -> Any:
        return jax.block_until_ready(compiled(*given))

    def theirs() -> Any:
        leaf.grad = None
        loss = torch_supcon(leaf, numbers)
        loss.backward()
        return loss.item(), np.asarray(leaf.grad)

    check(ours(), theirs())
    times = in_turn({"ours": ours, "torch": theirs}, repeats)
    return {
        f"ratio_{views}_views": times["torch"] / times["ours"],
        f"supcon_{views}_ms": {side: 1e3 * seconds for side, seconds in times.items()},
    }


def chunks(views: int) -> dict[str, float]:
    """Compares the memory of 512 anchors at a time with that of all at once."""
    z = jax.ShapeDtypeStruct((views // 2, 2, FEATURES), jnp.float32)
    labels = jax.ShapeDtypeStruct((views // 2, 3), jnp.int32)
    few, whole = (
        temporary(functools.partial(supcon, chunk=chunk), z, labels) for chunk in (512, views)
    )
    return {f"chunked_memory_share_{views}": few / whole, f"chunked_memory_mb_{views}": few / 1e6}


def triplets(size: int, repeats: int) -> dict[str, Any]:
    """Compares ours with the cubic form."""
    z = np.random.default_rng(0).standard_normal((size, 512), np.float32)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    given = jnp.asarray(z), jnp.tile(jnp.arange(size // 4, dtype=jnp.int32), 4)
    sides = {"ours": semi_hard, "cubic": cubic}
    compiled = {side: jax.jit(jax.value_and_grad(loss)) for side, loss in sides.items()}
    check(*[run(*given) for run in compiled.values()])
    works = {
        side: functools.partial(lambda run: jax.block_until_ready(run(*given)), run)
        for side, run in compiled.items()
    }
    times = in_turn(works, repeats)
    memory = {side: temporary(loss, *given) for side, loss in sides.items()}
    return {
        f"triplet_speedup_{size}": times["cubic"] / times["ours"],
        f"triplet_{size}_ms": {side: 1e3 * seconds for side, seconds in times.items()},
        f"triplet_memory_share_{size}": memory["ours"] / memory["cubic"],
    }


def collectives(views: int) -> dict[str, int]:
    """Counts the bytes between devices in the compiled loss and gradient of a batch.

    Of a gathering and of a scattering sum the size of the whole counts, which is what a device
    sends and receives but for its own part; of a plain sum its size.
    """
    z, labels = batch(views)
    loss = Parallel().sharded(gathered_supcon)
    text = jax.jit(jax.value_and_grad(loss)).lower(z, labels).compile().as_text() or ""
    found = 0
    for kinds, name in re.findall(r"= (.+?) (all-gather|all-reduce|reduce-scatter)\(", text):
        size = sum(
            math.prod(int(n) for n in shape.split(",") if n) * int(bits) // 8
            for bits, shape in re.findall(r"[fsu](\d+)\[([\d,]*)\]", kinds)
        )
        found += size * (len(jax.devices()) if name == "reduce-scatter" else 1)
    # Vectors out and their gradient back, labels out, numerator and number of anchors.
    predicted = 2 * z.nbytes + labels.nbytes + 8
    return {f"collective_bytes_{views}": found, f"predicted_bytes_{views}": predicted}


def on_virtual_devices() -> dict[str, int]:
    """Counts in a process of its own, so that what is timed here sees one device."""
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    run = subprocess.run(
        [sys.executable, __file__, "--collectives"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


def temporary(loss: Callable[..., Any], *given: Any) -> int:
    """Returns the bytes that the compiled loss and gradient need besides inputs and outputs."""
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*given).compile()
    return compiled.memory_analysis().temp_size_in_bytes  # pyright: ignore


def check(ours: Any, theirs: Any) -> None:
    """Stops if the sides do not compute the same."""
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-6)


def in_turn(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Returns the median of the seconds of each."""
    times: dict[str, list[float]] = {side: [] for side in works}
    for _ in range(repeats):
        for side, work in works.items():
            started = time.perf_counter()
            work()
            times[side].append(time.perf_counter() - started)
    return {side: statistics.median(values) for side, values in times.items()}


def main() -> None:
    """Measures everything and prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=9, help="times that each side is timed")
    parser.add_argument(
        "--collectives", action="store_true", help="count bytes between devices, nothing else"
    )
    options = parser.parse_args()
    if options.collectives:
        print(json.dumps(collectives(TRAINING)))
        return
    in_fair_environment()
    figures: dict[str, Any] = {}
    for views in (TRAINING, 4096):
        figures |= contrastive(views, options.repeats)
    figures |= chunks(8192) | triplets(512, options.repeats) | on_virtual_devices()
    figures |= {"torch_threads": torch.get_num_threads(), "load_average": os.getloadavg()[0]}
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        shown = (
            ", ".join(f"{k} {v:.1f}" for k, v in value.items())
            if isinstance(value, dict)
            else (f"{value:.3f}" if isinstance(value, float) else f"{value:,}")
        )
        print(f"{name:<28}{shown}")


if __name__ == "__main__":
    main()
