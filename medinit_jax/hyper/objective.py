"""What a hypernetwork is trained on: one pretext, or several with weights.

The views of all pretexts lie one behind another in one batch, whole groups of batch statistics
each, so that a network runs once and no group mixes pretexts. Every device holds an equal part of
each pretext's views, and nothing is compared across groups: a step does not depend on the devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.data.sources import Source, patients_of
from medinit_jax.hyper.pretext import PRETEXTS
from medinit_jax.hyper.pretexts.perceptron import REFERENCE
from medinit_jax.hyper.pretexts.rotation import Rotation
from medinit_jax.hyper.pretexts.task import FACTS, Facts, Pretext, Seen

HEADS = "heads"
# Key of the targets that say of every view whether its pretext counts yet; also prefix of facts.
BEGUN = "begun"
# Keys of config.pretext that are the settings of rotation, as they were before there were others.
_OF_ROTATION = ("mode", "circle", "label_smoothing")
_VARIANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Part:
    """One pretext of an objective.

    Attributes:
        name: Key in `PRETEXTS`.
        pretext: The task.
        weight: Of its loss in the sum.
        begin: Step from which on its loss counts.
    """

    name: str
    pretext: Pretext
    weight: float
    begin: int = dataclasses.field(default=0, repr=False)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Pretexts with weights.

    Attributes:
        parts: The pretexts, in the order of their views.
        group: Views that share batch statistics.
        width: Channels of pooled features that learned heads read; those of wider networks share
            rows, as tiles repeat.
    """

    parts: tuple[Part, ...]
    group: int
    width: int

    @property
    def plain(self) -> bool:
        """Whether it is rotation alone, whose logits are all that is read."""
        return len(self.parts) == 1 and type(self.parts[0].pretext) is Rotation

    @property
    def num_targets(self) -> int:
        """Number of classes of the predicted classifier; 4 where nothing reads it."""
        return max(part.pretext.classes for part in self.parts) or 4

    @property
    def needs(self) -> dict[str, str]:
        """{fact: name of a pretext that needs it}."""
        return {fact: part.name for part in self.parts for fact in part.pretext.needs}

    def chance(self, step: int) -> float:
        """Returns the loss in nats of features that say nothing, at a step."""
        return sum(
            part.weight * part.pretext.chance(self.group)[0]
            for part in self.parts
            if part.begin <= step
        )

    def begun(self, step: int, images: int) -> dict[str, np.ndarray]:
        """Returns what `views` has to know where pretexts begin later than others.

        Args:
            step: The step.
            images: How many images it has.

        Returns:
            {fact: float32 (images,)}, 1 if the pretext counts, 0 if not yet; {} if all begin at 0.
        """
        return {
            f"{BEGUN}/{part.name}": np.full(images, part.begin <= step, np.float32)
            for part in self.parts
            if part.begin
        }

    def images(self, batch: int) -> int:
        """Returns how many images `batch` views of every pretext are made of."""
        return max(batch // part.pretext.copies for part in self.parts)

    def rows(self, batch: int) -> int:
        """Returns how many views a network sees, if every pretext has `batch` of them."""
        return batch * len(self.parts)

    def views(self, images: jax.Array, key: jax.Array, facts: Facts, batch: int, devices: int):
        """Makes the views of a step.

        Args:
            images: float (B, S, S, C), as many as `images` says.
            key: Random key of the step.
            facts: {fact: int32 (B,)} of the images, and what `begun` gives.
            batch: Views of every pretext.
            devices: Into how many equal parts the result will be cut.

        Returns:
            Views (rows, S, S, C), and targets: those of rotation if it is alone, else
            {pretext: targets of its views}, with `BEGUN` where facts have it.
        """
        if self.plain:
            return self.parts[0].pretext.views(images, key, facts, self.group)
        made, targets, begun = [], {}, {}
        for number, part in enumerate(self.parts):
            count = batch // part.pretext.copies
            own = {name: values[:count] for name, values in facts.items()}
            drawn = jax.random.fold_in(key, number)
            views, asked = part.pretext.views(images[:count], drawn, own, self.group)
            made.append(views.reshape(devices, -1, *views.shape[1:]))
            targets[part.name] = asked
            if f"{BEGUN}/{part.name}" in own:
                begun[part.name] = jnp.repeat(own[f"{BEGUN}/{part.name}"], part.pretext.copies)
        if begun:
            targets[BEGUN] = begun
        joined = jnp.concatenate(made, 1)
        return joined.reshape(-1, *joined.shape[2:]), targets

    def gathered(self, views: jax.Array, targets: Any) -> tuple[jax.Array, Any]:
        """Undoes the division over devices: (devices, rows, ...) -> all rows of a pretext together.

        Args:
            views: As several devices have them.
            targets: As several devices have them.
        """
        devices, _, *shape = views.shape
        apart = views.reshape(devices, len(self.parts), -1, *shape).swapaxes(0, 1)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), targets)
        return apart.reshape(-1, *shape), flat

    def heads(self, key: jax.Array) -> dict[str, Any]:
        """Draws the learned heads, {pretext: parameters}, of those that have one."""
        drawn = {
            part.name: part.pretext.head(jax.random.fold_in(key, number), self.width)
            for number, part in enumerate(self.parts)
        }
        return {name: head for name, head in drawn.items() if head}

    def read(self, pooled: jax.Array) -> jax.Array:
        """Returns pooled features (n, channels) as heads read them, (n, width)."""
        return standardized(pooled, self.group, self.width)

    @property
    def loss(self):
        """What a tape or `loss_whole` takes: the loss of rotation alone, or `judge`."""
        first: Any = self.parts[0].pretext
        return first.loss if self.plain else self.judge

    def judge(
        self, logits: jax.Array, features: jax.Array, targets: Any, heads: Mapping[str, Any]
    ) -> tuple[jax.Array, dict[str, dict[str, jax.Array]]]:
        """Returns the weighted sum of all losses, and what is logged of each pretext.

        Args:
            logits: Float (rows, classes).
            features: Float (rows, width), as `read` gives them.
            targets: As `views` gives them.
            heads: Parameters of the learned heads.

        Returns:
            The loss, and {pretext: {"loss", "score", "spread"}}; a spread of 0 means that all views
            of a group have the same features, 1 that every channel tells them apart.
        """
        total, found, first = jnp.zeros((), logits.dtype), {}, 0
        share = len(logits) // len(self.parts)
        for part in self.parts:
            rows = slice(first, first + share)
            first += share
            seen = Seen(
                features[rows], logits[rows], targets[part.name], heads.get(part.name, {}),
                self.group,
            )  # fmt: skip
            loss, score = part.pretext.judge(seen)
            begun = targets.get(BEGUN, {}).get(part.name)
            counted = loss if begun is None else begun.mean().astype(loss.dtype) * loss
            total += part.weight * counted
            spread = jnp.square(features[rows]).sum(1).mean() / REFERENCE
            found[part.name] = {"loss": loss, "score": score, "spread": spread}
        return total, found


def standardized(pooled: jax.Array, group: int, width: int) -> jax.Array:
    """Brings pooled features of any network into one form.

    Every channel is brought to mean 0 and variance 1 over its group: what all images share says
    nothing, and architectures differ in scale. The result is scaled by sqrt(REFERENCE / channels),
    so that its length does not depend on the width of the network.

    Args:
        pooled: float (n, channels).
        group: Rows that are compared; divides n.
        width: Channels of the result; more are folded, channel i onto i mod width.

    Returns:
        float (n, width).
    """
    rows, channels = pooled.shape
    grouped = pooled.reshape(-1, group, channels)
    centered = grouped - grouped.mean(1, keepdims=True)
    variance = jnp.square(centered).mean(1, keepdims=True)
    scaled = centered * jax.lax.rsqrt(variance + _VARIANCE) * (REFERENCE / channels) ** 0.5
    padded = jnp.pad(scaled.reshape(rows, channels), ((0, 0), (0, -channels % width)))
    return padded.reshape(rows, -1, width).sum(1)


def split(params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides what is trained into the hypernetwork's parameters and the learned heads'."""
    theta = {name: leaves for name, leaves in params.items() if name != HEADS}
    return theta, params.get(HEADS, {})


def joined(theta: Mapping[str, Any], heads: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is trained: `split` undoes it. Without heads it is theta as it ever was."""
    return {**theta, HEADS: dict(heads)} if heads else dict(theta)


def make_objective(config: ml_collections.ConfigDict) -> Objective:
    """Reads the pretexts that `config.pretext.name` lists, joined by +.

    Args:
        config: The experiment.

    Raises:
        UsageError: A name or an option means nothing, or pretexts do not go together.
    """
    group, batch = config.train.bn_group, config.train.batch_size
    names = [name.strip() for name in str(config.pretext.name).split("+")]
    if len(set(names)) < len(names):
        raise UsageError(f"config.pretext.name={config.pretext.name!r} names a pretext twice.")
    begin = config.pretext.get("begin", {})
    earliest = min(begin.get(name, 0) for name in names)
    parts = []
    for name in names:
        weight = config.pretext.weights.get(name, 1.0)
        if not 0 < weight < float("inf"):
            raise UsageError(
                f"config.pretext.weights.{name}={weight} must be above 0; leave {name} out of "
                "config.pretext.name instead."
            )
        share = begin.get(name, 0)
        if not 0 <= share < 1:
            raise UsageError(
                f"config.pretext.begin.{name}={share} must be a share of the steps, from 0 to "
                "below 1."
            )
        first = int(share * config.train.steps) if share > earliest else 0
        # Beside no other a weight would do nothing but to move the loss against the clipping.
        weight = float(weight) if len(names) > 1 else 1.0
        parts.append(Part(name, make_pretext(config, name), weight, first))
    objective = Objective(tuple(parts), group, config.pretext.width)
    for part in parts:
        copies = part.pretext.copies
        if batch % copies:
            raise UsageError(
                f"config.train.batch_size={batch} views cannot be made of whole images with "
                f"{copies} views each; make it a multiple of {copies}."
            )
        problem = "" if objective.plain else part.pretext.check(group)
        if problem:
            raise UsageError(f"The pretext {part.name} cannot be asked: {problem}.")
    _check_classifier(parts)
    if config.pretext.width < 1:
        raise UsageError(f"config.pretext.width={config.pretext.width} must be at least 1.")
    return objective


def _check_classifier(parts: list[Part]) -> None:
    """Raises UsageError if two pretexts ask the one predicted classifier for other classes."""
    asking = {part.pretext.classes: part.name for part in parts if part.pretext.classes}
    if len(asking) > 1:
        (a, first), (b, second), *_ = asking.items()
        raise UsageError(
            f"The pretexts {first} ({a} classes) and {second} ({b}) both ask the one predicted "
            "classifier; give the labels a head of their own with "
            "--config.pretext.weak_labels.answer=learned, or leave one out of config.pretext.name."
        )


def make_pretext(config: ml_collections.ConfigDict, name: str = "", **changes) -> Any:
    """Returns one pretext with the settings of the configuration.

    Args:
        config: The experiment.
        name: Key in `PRETEXTS`; "": the one that `config.pretext.name` names.
        **changes: Attributes that differ.

    Raises:
        UsageError: There is no such pretext.
    """
    given = config.pretext
    name = name or given.name
    if name not in PRETEXTS:
        raise UsageError(f"config.pretext.name={name!r} is none of {', '.join(PRETEXTS)}.")
    options = {key: given[key] for key in _OF_ROTATION} if "rotation" in name else {}
    options |= dict(given.get(name, {}))
    lists = {key: tuple(value) for key, value in options.items() if isinstance(value, list)}
    return PRETEXTS[name](**(options | lists | changes))


def rotation_of(config: ml_collections.ConfigDict, **changes) -> Rotation:
    """Returns the rotation that the objective asks, or the plain one where it asks none.

    Args:
        config: The experiment.
        **changes: Attributes that differ.
    """
    names = str(config.pretext.name).split("+")
    asked = [name for name in ("rotation", "hard_rotation") if name in names]
    return make_pretext(config, (asked or ["rotation"])[0], **changes)


def known_facts(
    objective: Objective, source: Source, patients_needed: int = 2
) -> Callable[[Mapping], Facts]:
    """Returns the function from a batch of images to what the pretexts have to know of them.

    Args:
        objective: The pretexts.
        source: Where the images come from.
        patients_needed: How many, where patients are asked for; of one nothing is learned.

    Raises:
        UsageError: The images lack what a pretext needs.
    """
    needs = objective.needs
    labeled = "label" in needs and source[0].get("label") is not None
    patients = patients_of(source) if "patient" in needs else []
    for fact, found in (("label", labeled), ("patient", len(set(patients)) >= patients_needed)):
        if fact in needs and not found:
            raise UsageError(
                f"The pretext {needs[fact]} of config.pretext.name needs {FACTS[fact]}, which "
                f"these images lack; give them, or leave {needs[fact]} out."
            )
    numbers = np.unique(patients, return_inverse=True)[1].astype(np.int32)

    def facts(batch: Mapping[str, np.ndarray]) -> Facts:
        found = {}
        if "label" in needs:
            found["label"] = batch["label"]
        if "patient" in needs:
            found["patient"] = numbers[batch["index"]]
        return found

    return facts
