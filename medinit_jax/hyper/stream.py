"""The stream of architectures: which ones a step trains on, prepared ahead on the host."""

from __future__ import annotations

import concurrent.futures
from collections import Counter

import numpy as np

from medinit_jax.arch.graph import ArchGraph
from medinit_jax.arch.program import Program
from medinit_jax.arch.space import Space
from medinit_jax.arch.tape import Signature, signatures
from medinit_jax.hyper.bilevel import MetaBatch, meta_batch
from medinit_jax.hyper.hypernetwork import HyperInitializer
from medinit_jax.hyper.initializer import graph_of


class ArchitectureStream:
    """Meta-batches of training architectures by step number, with a few prepared ahead.

    Which architectures belong to a step depends on (seed, step) alone. Training may start with the
    first few of the split and double their number regularly.

    Args:
        space: The design space.
        module: The hypernetwork.
        count: Architectures per step, m.
        seed: Seed of the choice.
        first: Architectures at the start; 0 = all at once.
        double_every: Steps after which their number doubles.
        ahead: Meta-batches prepared ahead.
        share: Which share of each step's architectures is prepared, and the number of shares:
            architecture j belongs to share j modulo that number.
    """

    def __init__(
        self,
        space: Space,
        module: HyperInitializer,
        count: int,
        seed: int,
        first: int = 0,
        double_every: int = 1,
        ahead: int = 3,
        share: tuple[int, int] = (0, 1),
    ):
        self.space, self.module, self.count, self.seed = space, module, count, seed
        self.first, self.double_every, self.ahead = first, double_every, ahead
        self.share = share
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "architectures")
        self._pending: dict[int, concurrent.futures.Future[MetaBatch]] = {}

    def available(self, step: int) -> int:
        """Returns how many architectures of the split a step chooses from."""
        size = self.space.size("train")
        if not self.first:
            return size
        doublings = min(step / self.double_every, 60.0)
        return min(size, int(self.first * 2.0**doublings))

    def indices(self, step: int) -> tuple[int, ...]:
        """Returns the numbers of a step's architectures in the split `train`, of all shares."""
        rng = np.random.default_rng([self.seed, step])
        return tuple(int(i) for i in rng.integers(0, self.available(step), self.count))

    def describe(self, step: int) -> str:
        """Names a step's architectures for the log."""
        return ", ".join(f"train:{i}" for i in self.indices(step))

    def prepare(self, step: int) -> MetaBatch:
        """Samples, builds and batches the architectures of a step, or this share of them."""
        first, shares = self.share
        indices = self.indices(step)[first::shares]
        programs, graphs = zip(*(self._network(i) for i in indices), strict=True)
        return meta_batch(programs, graphs, self.module, indices)

    def _network(self, index: int) -> tuple[Program, ArchGraph]:
        network = self.space.program("train", index, self.module.num_classes)
        return network, graph_of(self.module, network)

    def __getitem__(self, step: int) -> MetaBatch:
        """Returns a step's meta-batch and starts to prepare the next ones."""
        for ahead in range(step, step + 1 + self.ahead):
            if ahead not in self._pending:
                self._pending[ahead] = self._pool.submit(self.prepare, ahead)
        for past in [s for s in self._pending if s < step]:
            del self._pending[past]
        return self._pending.pop(step).result()

    def close(self) -> None:
        """Ends the preparation."""
        self._pool.shutdown(cancel_futures=True)


def frequent_signatures(space: Space, classes: int, networks: int) -> tuple[Signature, ...]:
    """Returns the signatures of the first training networks, the most frequent first.

    Args:
        space: The design space.
        classes: Classes of the head.
        networks: How many networks to look at, at most.
    """
    seen = Counter(
        signature
        for index in range(min(networks, space.size("train")))
        for signature in signatures(space.program("train", index, classes))
    )
    return tuple(signature for signature, _ in seen.most_common())
