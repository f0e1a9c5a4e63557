"""The input pipeline: an endless stream of augmented batches whose position is a step number.

Batch `step` is a pure function of (source, options, step). Hence a run resumes exactly, whatever
the number of workers, and n processes together see the batches that one process sees.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import cv2
import grain
import numpy as np
from absl import flags

from medinit_jax.core.errors import UsageError
from medinit_jax.data.augment import Augmentation, normalize, warp
from medinit_jax.data.readable import Readable
from medinit_jax.data.sources import Source

ENDLESS = 1 << 40
# Names the use of the seed: order of an epoch, and the draws of one image in one epoch.
_ORDER, _DRAW = 1, 2
# How often workers are started again for one batch, and what grain says of one that was killed.
_RESTARTS, _KILLED = 3, "terminated unexpectedly"


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A difficulty that stays at `start`, then goes linearly to `end`.

    Attributes:
        start: Difficulty at first.
        end: Difficulty at last.
        hold: Steps at `start`.
        steps: Steps from `start` to `end`.
    """

    start: float = 1.0
    end: float = 1.0
    hold: int = 0
    steps: int = 0

    def __call__(self, step: int) -> float:
        """Returns the difficulty at a step."""
        if step >= self.hold + self.steps:
            return self.end
        return self.start + (self.end - self.start) * max(0, step - self.hold) / self.steps


@dataclasses.dataclass(frozen=True)
class BatchOptions:
    """What a stream of batches is made of, besides its images.

    Attributes:
        batch: Images per global batch.
        seed: Seed of order and draws.
        augmentation: Ranges of the draws.
        mean: Mean of each channel in 0..1.
        std: Deviation of each channel in 0..1.
        size: Side of the images in pixels; None keeps the source's.
        shuffle: Whether every epoch has its own order.
        difficulty: Scale of the draws by step, see `Augmentation.scaled`.
    """

    batch: int
    seed: int
    augmentation: Augmentation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None
    shuffle: bool = True
    difficulty: Ramp = Ramp()


class BatchSource:
    """Batches by step number: a grain source of practically endless length."""

    def __init__(self, source: Source, options: BatchOptions, process: tuple[int, int] = (0, 1)):
        """Prepares the part of the global batches that one process reads.

        Args:
            source: The images.
            options: Size, order and draws.
            process: This process's number and the number of processes.

        Raises:
            UsageError: No images, or a batch that the processes cannot share equally.
        """
        index, count = process
        if len(source) == 0:
            raise UsageError("The image source is empty; choose other images in data.")
        if options.batch < 1 or options.batch % count:
            raise UsageError(
                f"A batch of {options.batch} images cannot be shared by {count} processes; "
                f"set data.batch to a positive multiple of {count}."
            )
        self._source, self._options = source, options
        self._readable = Readable(source.__getitem__, len(source))
        share = options.batch // count
        self._part = slice(index * share, (index + 1) * share)

    def __len__(self) -> int:
        """Returns a length that no run reaches."""
        return ENDLESS

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Returns this process's part of batch `step`.

        Returns:
            image float32 (B, S, S, 3) normalized; eye int32 (B,); index int64 (B,), the number of
            the image in the source; label int32 (B,) if the source has labels.
        """
        step = int(step)
        batch, count = self._options.batch, len(self._source)
        places = range(step * batch, (step + 1) * batch)[self._part]
        epochs, offsets = zip(*(divmod(place, count) for place in places), strict=True)
        indices = [
            int(epoch_order(self._options.seed, epoch, count)[offset])
            if self._options.shuffle
            else offset
            for epoch, offset in zip(epochs, offsets, strict=True)
        ]
        draws = [(self._options.seed, _DRAW, e, i) for e, i in zip(epochs, indices, strict=True)]
        difficulty = self._options.difficulty(step)
        return _assemble(self._readable, indices, draws, self._options, difficulty)


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns the order of `count` images in an epoch, int64 (count,)."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(count)


def _assemble(readable: Readable, indices, draws, options: BatchOptions, difficulty: float):
    """Reads, moves and stacks images; `draws` holds the seed of each image's map."""
    augmentation = options.augmentation.scaled(difficulty)
    fixed = augmentation.is_identity
    images, eyes, labels, numbers = [], [], [], []
    for index, seed in zip(indices, draws, strict=True):
        number, example = readable.find(index)
        numbers.append(number)
        image = example["image"]
        if not fixed or (options.size and options.size != image.shape[0]):
            matrix = augmentation.draw(np.random.default_rng(seed), example["eye"])
            image = warp(image, matrix, options.size, augmentation.border)
        images.append(image)
        eyes.append(example["eye"])
        labels.append(example.get("label"))
    batch = {
        "image": normalize(np.stack(images), options.mean, options.std),
        "eye": np.array(eyes, np.int32),
        "index": np.array(numbers, np.int64),
    }
    if labels[0] is not None:
        batch["label"] = np.array(labels, np.int32)
    return batch


def load_examples(
    source: Source, indices: np.ndarray, options: BatchOptions, difficulty: float = 1.0
) -> dict[str, np.ndarray]:
    """Reads given images with draws that depend only on the seed and the image: for evaluation.

    Args:
        source: The images.
        indices: Numbers of the images.
        options: As for training; batch and shuffle are not used.
        difficulty: Scale of the draws.

    Returns:
        The entries of a batch, one row per index.
    """
    numbers = [int(i) for i in indices]
    draws = [(options.seed, _DRAW, 0, i) for i in numbers]
    readable = Readable(source.__getitem__, len(source))
    return _assemble(readable, numbers, draws, options, difficulty)


class StepSource(Protocol):
    """Batches by step number; batch `step` is the same whenever it is asked for."""

    def __len__(self) -> int:
        """Returns a length that no run reaches."""
        ...

    def __getitem__(self, step: int, /) -> dict[str, Any]:
        """Returns batch `step`: arrays, or dicts of arrays, by name."""
        ...


class Batches(Iterator[dict[str, Any]]):
    """Iterates over batches in the background, from a position that can be saved and restored.

    Worker processes that die, such as for want of memory, are started again where they were.

    Attributes:
        source: The batches by step number.
        restarts: How often that was so.
    """

    def __init__(self, batches: StepSource, workers: int = 0, prefetch: int = 2, start: int = 0):
        """Starts at batch `start`.

        Args:
            batches: The batches.
            workers: Processes that make batches; 0 makes them in a thread of this process, which
                is the faster way for images in memory. Processes are spawned, never forked.
            prefetch: Batches made ahead, by each worker.
            start: First step.

        Raises:
            UsageError: The number of workers is negative.
        """
        if workers < 0:
            raise UsageError(
                f"config.data.workers={workers} is no number of processes; set it to 0 or more."
            )
        self.source, self._workers, self._prefetch = batches, workers, prefetch
        self._step = start
        self._iterator: Any = None
        self.restarts = 0

    def __next__(self) -> dict[str, Any]:
        """Returns the batch of the current step and moves on.

        Raises:
            UsageError: Workers die again and again before they have made it.
        """
        for _ in range(_RESTARTS + 1):
            try:
                if self._iterator is None:
                    self._iterator = iter(self._dataset())
                batch = next(self._iterator)
            except RuntimeError as error:
                if _KILLED not in str(error):
                    raise
                self.close()
                self.restarts += 1
                print(
                    f"A worker that makes batches died before step {self._step} ({error}); all are "
                    f"started again, for the {self.restarts}. time.",
                    file=sys.stderr,
                )
            else:
                self._step += 1
                return batch
        raise UsageError(
            f"The workers that make batches died {_RESTARTS + 1} times before step {self._step}; "
            "memory may be short: lower config.data.workers, or set it to 0."
        )

    def _dataset(self) -> grain.IterDataset:
        steps = grain.MapDataset.source(self.source)[self._step :]
        if not self._workers:
            reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._prefetch)
            return steps.to_iter_dataset(reading)
        if not flags.FLAGS.is_parsed():
            # Grain reads its own absl flags, which only an absl application would have parsed.
            flags.FLAGS.mark_as_parsed()
        inline = steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        return inline.mp_prefetch(
            grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=self._prefetch),
            worker_init_fn=_one_thread,
        )

    def get_state(self) -> dict[str, int]:
        """Returns the position: the step whose batch comes next."""
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a position that `get_state` returned, with any number of workers."""
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Ends threads and worker processes; the iterator can go on afterwards."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def _one_thread(worker: int, workers: int) -> None:
    """Keeps OpenCV from starting threads in every worker."""
    cv2.setNumThreads(1)
