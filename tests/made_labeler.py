"""An untrained labeler as a fine-tuning would leave it."""

import jax

from medinit_jax.core.parameters import save_params
from medinit_jax.finetune.network import make_network
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.statistics import initial_statistics

HEAD = {"name": "abnormal", "classes": ["normal", "abnormal"], "kind": "softmax"}


def write_labeler(workdir, name="resnet18", size=64, heads=(HEAD,), **model):
    """Writes `model/` into a workdir; returns the workdir."""
    described = {"name": name, **model}
    width = sum(len(head["classes"]) for head in heads)
    network = make_network(described, size, width, "classification")
    tree = {"params": initial_parameters(network.program, jax.random.key(7))}
    statistics = initial_statistics(network.program)
    if statistics:
        tree["batch_stats"] = statistics
    metadata = {
        "task": "made",
        "kind": "classification",
        "modality": "fundus",
        "size": size,
        "heads": list(heads),
        "start": {"start": "random"},
        "model": described,
        "data": {"recipe": "hyper512", "normalization": "fundus", "target": "label"},
    }
    save_params(workdir / "model", tree, metadata, kind="model")
    return workdir
