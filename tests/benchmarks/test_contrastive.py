"""The opponents of the losses compute what ours compute, and the bytes are those predicted."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.losses.supcon import supcon
from medinit_jax.swcl.triplet import semi_hard

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def contrastive():
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    yield pytest.importorskip("contrastive")
    sys.path.remove(folder)


def test_pytorch_computes_the_same(contrastive):
    z, labels = contrastive.batch(64)
    leaf = torch.from_numpy(z.copy()).requires_grad_()
    loss = contrastive.torch_supcon(leaf, torch.from_numpy(contrastive.numbered(labels)))
    loss.backward()
    value, gradient = jax.value_and_grad(supcon)(z, labels)
    np.testing.assert_allclose(value, loss.item(), 1e-5)
    np.testing.assert_allclose(gradient, leaf.grad, 1e-5, 1e-6)


def test_pairs_of_the_batch_are_the_two_eyes(contrastive):
    _, labels = contrastive.batch(64)
    np.testing.assert_array_equal(labels[::2, ::2], labels[1::2, ::2])
    assert len(np.unique(labels[:, ::2], axis=0)) == 16


def test_the_cubic_form_computes_the_same(contrastive):
    z = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32)
    y = jnp.tile(jnp.arange(8, dtype=jnp.int32), 3)
    ours, theirs = (jax.value_and_grad(loss)(z, y) for loss in (semi_hard, contrastive.cubic))
    np.testing.assert_allclose(ours[0], theirs[0], 1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], 1e-4, 1e-6)


def test_devices_exchange_what_was_predicted(contrastive):
    counted = contrastive.collectives(64)
    assert counted["collective_bytes_64"] == counted["predicted_bytes_64"] > 64 * 128 * 8
