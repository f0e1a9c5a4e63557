"""What can be exported: networks that a run left, and networks that an initializer predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax import api
from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import INITIALIZER_FOLDER, KINDS, load_params
from medinit_jax.core.workdir import CONFIG_FILE
from medinit_jax.data.augment import NORMALIZATION
from medinit_jax.downstream.heads import Head
from medinit_jax.finetune.network import OPTIONS, make_network
from medinit_jax.finetune.starts import MODEL_FOLDER, make_start
from medinit_jax.finetune.tuned import model_of
from medinit_jax.hyper.starts import WHOLE
from medinit_jax.interop.preprocessing import UNKNOWN, of_plan, values
from medinit_jax.interop.run_state import CHECKPOINTS, network_of, newest
from medinit_jax.models import zoo
from medinit_jax.models.encoder import ENCODER, body
from medinit_jax.models.statistics import initial_statistics

PRETRAINED = "pretrained encoder"
_MODEL_FILE = KINDS["model"]


class Origin(NamedTuple):
    """A network with its weights, and all that is known of them.

    Attributes:
        what: "fine-tuned network", "labeler", "pretrained encoder" or "predicted network".
        folder: Where it was read.
        name: Of the network, in `models.zoo`.
        options: Of its builder, those that are set.
        program: The network; of an encoder the classifier whose head was left out.
        params: {module: {leaf: array}}; of an encoder without the head's.
        statistics: {"module.stats": {"mean" and "var": array}}.
        kind: "classification", "segmentation" or "encoder".
        heads: What the logits are; () where nobody recorded it.
        preprocessing: What has to be done to an image, see `CARD.md`.
        record: What `model.json`, `initializer.json` or the checkpoint holds.
        summary: `summary.json` of the run; {} where there is none.
        config: Its configuration; {} where there is none.
        remarks: What whoever uses it should know.
    """

    what: str
    folder: str
    name: str
    options: dict[str, Any]
    program: Program
    params: Mapping[str, Mapping[str, Any]]
    statistics: Mapping[str, Mapping[str, Any]]
    kind: str
    heads: tuple[Head, ...]
    preprocessing: dict[str, Any]
    record: dict[str, Any]
    summary: dict[str, Any]
    config: dict[str, Any]
    remarks: tuple[str, ...]

    @property
    def has_head(self) -> bool:
        """Whether it ends in logits."""
        return self.kind != "encoder"


def trained(path: str | Path) -> Origin:
    """Reads a network that a run trained.

    Args:
        path: The workdir of a fine-tuning, labeler or pretraining, its `model/` folder, or the
            folder of its checkpoints. Of a run that ended `model/` is taken, of one that was
            stopped the newest checkpoint.

    Raises:
        UsageError: There is none, or it is damaged.
    """
    given = Path(path)
    workdir = given.parent if given.name in (MODEL_FOLDER, CHECKPOINTS) else given
    places = [given, given / MODEL_FOLDER]
    if given.name == CHECKPOINTS:
        # Checkpoints of a run that ended are older than what it left, or none.
        places.append(workdir / MODEL_FOLDER)
    for folder in places:
        if (folder / _MODEL_FILE).is_file():
            tree, record = load_params(folder, "model")
            return _origin(workdir, tree, record, folder / _MODEL_FILE, ())
    checkpoints = workdir / CHECKPOINTS
    if given.name != MODEL_FOLDER and checkpoints.is_dir():
        held, record = newest(checkpoints)
        tree, remark = network_of(held, record)
        return _origin(workdir, tree, record, checkpoints / str(held.step), (remark,))
    if any(
        (place / KINDS["initializer"]).is_file() for place in (given, given / INITIALIZER_FOLDER)
    ):
        raise UsageError(
            f"{given} holds an initializer, which is no network; name it with --config.initializer "
            "and the network to predict with --config.model.name."
        )
    raise UsageError(
        f"{given} holds no {MODEL_FOLDER}/{_MODEL_FILE} and no {CHECKPOINTS}/; name the workdir "
        "of a fine-tuning, labeler or pretraining with --config.checkpoint."
    )


def _origin(
    workdir: Path, tree: Mapping[str, Any], record: Any, place: Path, remarks: Sequence[str]
) -> Origin:
    summary, held = _json(workdir / "summary.json"), _json(workdir / CONFIG_FILE)
    config = held.get("config", {})
    if isinstance(record, dict) and record.get("kind") == "encoder":
        return _encoder(workdir, tree, record, place, summary, config, remarks)
    model = model_of(tree, record, place)
    _check_shapes(model.network.program, model.params, place)
    return Origin(
        "labeler" if config.get("route") == "labeler" else "fine-tuned network",
        str(workdir),
        model.record["model"]["name"],
        _options(model.record["model"]),
        model.network.program,
        model.params,
        model.statistics,
        model.kind,
        model.heads,
        of_plan(model.plan, record["data"]["recipe"]),
        model.record,
        summary,
        config,
        tuple(remarks),
    )


def _encoder(
    workdir: Path,
    tree: Mapping[str, Any],
    record: dict[str, Any],
    place: Path,
    summary: dict[str, Any],
    config: dict[str, Any],
    remarks: Sequence[str],
) -> Origin:
    try:
        size, model, data = int(record["size"]), dict(record["model"]), dict(record["data"])
        mean, std = NORMALIZATION[data["normalization"]]
        program = make_network(model, size, 2, "classification").program
        params = tree["params"]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{place} lacks {error} or has another type there; fetch the encoder again."
        ) from error
    _check_shapes(body(program), params, place)
    return Origin(
        PRETRAINED,
        str(workdir),
        model["name"],
        _options(model),
        program,
        params,
        tree.get("batch_stats", {}),
        "encoder",
        (),
        {
            "size": size,
            "steps": f"Views of {size} x {size} pixels by the recipe {data.get('views', UNKNOWN)}; "
            "for evaluation resize the image to this size.",
            **values(mean, std),
        },
        record,
        summary,
        config,
        tuple(remarks),
    )


def predicted(
    path: str | Path,
    model: Mapping[str, Any],
    classes: int,
    size: int,
    seed: int,
    console: Console,
) -> Origin:
    """Predicts the weights of a network, as `--config.init.start=hyper` of a fine-tuning does.

    Args:
        path: A trained initializer: its folder, or the workdir of its training.
        model: Name and options of the network, as `config.model` of a fine-tuning.
        classes: Size of the logits.
        size: Side of the images in pixels.
        seed: Of what is not predicted, the head above all.
        console: Where is said what is predicted.

    Raises:
        UsageError: There is no such initializer or network.
    """
    name = str(model.get("name", ""))
    if not name or classes < 1 or size < 1:
        raise UsageError(
            f"config.model.name={name!r}, config.num_classes={classes} and config.size={size} "
            "describe no network; name one, such as resnet18, with at least 1 class and images of "
            "at least 1 pixel."
        )
    kind = "segmentation" if zoo.encoder_of(name) != name or name == "unet" else "classification"
    network = make_network(model, size, classes, kind)
    init = {
        "start": "hyper", "path": str(path), "only": "auto", "unknown_types": "error",
        **WHOLE._asdict(),
    }  # fmt: skip
    config = ml_collections.ConfigDict({"init": init, "seed": seed, "model": dict(model)})
    start = make_start(config, network, console)
    initializer = api.load(path)
    statistics = initial_statistics(network.program)
    remarks = ["The network is not trained: it is a start, whose answers mean nothing yet."]
    if statistics:
        remarks.append(
            "Its batch statistics are those of a new network (mean 0, variance 1); train, or "
            "estimate them on images, before it is evaluated."
        )
    known = initializer.metadata.get("preprocessing", {})
    return Origin(
        "predicted network",
        str(path),
        name,
        _options(model),
        network.program,
        start.params,
        statistics,
        kind,
        (),
        {
            "size": size,
            "steps": f"The initializer was trained on images of {known.get('size', UNKNOWN)} px.",
            **values(known.get("mean", UNKNOWN), known.get("std", UNKNOWN)),
        },
        {**initializer.metadata, "start": start.record, "fingerprint": initializer.fingerprint},
        {},
        {},
        tuple(remarks),
    )


def encoder_of(origin: Origin) -> Origin:
    """Returns the encoder of a network: a classifier without its head.

    Args:
        origin: A classifier, or a segmentation network on a classifier's encoder.

    Raises:
        UsageError: The encoder is no classifier's, as that of the classic U-Net.
    """
    if not origin.has_head:
        return origin
    name, remarks = zoo.encoder_of(origin.name), list(origin.remarks)
    params, statistics, options = origin.params, origin.statistics, dict(origin.options)
    program = origin.program
    if origin.kind == "segmentation":
        if name not in zoo.CLASSIFIERS:
            raise UsageError(f"The encoder of {name} is no classifier's; export all of it.")
        if options.pop("output_stride", 32) != 32:
            remarks.append("Its last strides were replaced by dilation; the weights are the same.")
        options.pop("decoder", None)
        described = {"name": name, **options}
        program = make_network(described, program.input_shape[0], 2, "classification").program
        own = f"{ENCODER}."
        params, statistics = (
            {module.removeprefix(own): v for module, v in tree.items() if module.startswith(own)}
            for tree in (params, statistics)
        )
    kept = body(program).parameter_shapes()
    params = {module: params[module] for module in kept}
    remarks.append(f"The encoder of a {origin.name} that has a head of its own.")
    return origin._replace(
        name=name, options=options, program=program, params=params, statistics=statistics,
        kind="encoder", heads=(), remarks=tuple(remarks),
    )  # fmt: skip


def _check_shapes(program: Program, params: Mapping[str, Any], place: Path) -> None:
    """Raises UsageError unless all weights of a network are there with their shapes."""
    for module, leaves in program.parameter_shapes().items():
        for leaf, shape in leaves.items():
            found = np.shape(params.get(module, {}).get(leaf, np.nan))
            if found != shape:
                raise UsageError(
                    f"{place} describes a network whose {module}/{leaf} is {shape}, but has "
                    f"{found or 'none'}; fetch the model again."
                )


def _options(model: Mapping[str, Any]) -> dict[str, Any]:
    return {key: model[key] for key in OPTIONS if model.get(key)}


def _json(file: Path) -> dict[str, Any]:
    """Returns the object of a file that a run may lack; raises UsageError if it is damaged."""
    if not file.is_file():
        return {}
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}); fetch the run again.") from error
    if not isinstance(held, dict):
        raise UsageError(f"{file} holds no object; fetch the run again.")
    return held
