"""Traces well-known PyTorch models and writes predicted parameters for them; needs the torch extra.

    pip install -c benchmarks/coverage.txt torch torchvision timm segmentation-models-pytorch monai
    python benchmarks/coverage.py
    python benchmarks/coverage.py --json
    python benchmarks/coverage.py --only timm:swin

What each figure means is told in benchmarks/README.md. No model's weights are downloaded.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import timm
import torch
import torchvision
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.basic_unet import BasicUNet
from monai.networks.nets.unet import UNet
from segmentation_models_pytorch import FPN, DeepLabV3Plus, Unet

from medinit_jax.arch.dataflow import UNUSED, Traced
from medinit_jax.arch.torch_trace import trace
from medinit_jax.arch.vocabulary import NODE_TYPES, TYPE_INDEX
from medinit_jax.hyper.hypernetwork import HyperInitializer, init_theta
from medinit_jax.hyper.written import coverage, write

PACKAGES = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "monai")
TIMM = (
    "beit_base_patch16_224", "botnet26t_256", "cait_xxs24_224", "caformer_s18", "coat_tiny",
    "coatnet_0_rw_224", "convit_tiny", "convmixer_768_32", "convnext_atto", "convnextv2_atto",
    "crossvit_9_240", "cs3darknet_s", "davit_tiny", "deit3_small_patch16_224", "densenet121",
    "dla34", "dm_nfnet_f0", "dpn68", "edgenext_xx_small", "efficientformer_l1",
    "efficientnet_b0", "efficientvit_b0", "eva02_tiny_patch14_224", "fastvit_t8",
    "focalnet_tiny_srf", "gcvit_xxtiny", "ghostnet_100", "hardcorenas_a", "hgnet_tiny",
    "hrnet_w18_small", "inception_next_tiny", "inception_v4", "legacy_seresnet18", "levit_128s",
    "mambaout_femto", "maxvit_tiny_tf_224", "mixer_s16_224", "mobilenetv4_conv_small",
    "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050", "mvitv2_tiny", "nest_tiny",
    "pit_ti_224", "poolformer_s12", "pvt_v2_b0", "rdnet_tiny", "regnety_016", "repvgg_a0",
    "res2net50_26w_4s", "resmlp_12_224", "resnest14d", "resnet50", "resnetv2_50x1_bit",
    "rexnet_100", "selecsls42", "seresnext50_32x4d", "skresnet18", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256", "tiny_vit_5m_224", "tnt_s_patch16_224", "tresnet_m",
    "twins_svt_small", "vgg11_bn", "visformer_tiny", "vit_small_patch16_224",
    "vit_small_patch16_dinov3", "vovnet39a", "wide_resnet50_2", "xception41",
    "xcit_nano_12_p16_224",
)  # fmt: skip
LAYERS = (
    torch.nn.modules.conv._ConvNd,
    torch.nn.Linear,
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.GroupNorm,
    torch.nn.LayerNorm,
)


class Case(NamedTuple):
    """A model to be covered: its name, its library's way of making it, the side of its images."""

    name: str
    make: Callable[[], torch.nn.Module]
    size: int = 224
    channels: int = 3


def cases() -> Iterator[Case]:
    """Yields all models."""
    for name in torchvision.models.list_models(module=torchvision.models):
        size = 299 if name.startswith("inception") else 224
        yield Case(f"torchvision:{name}", lambda n=name: _torchvision(n), size)
    for name in torchvision.models.list_models(module=torchvision.models.segmentation):
        yield Case(f"torchvision:{name}", lambda n=name: _torchvision(n, weights_backbone=None))
    for name in TIMM:
        size = timm.get_pretrained_cfg(name)
        side = size.input_size[-1] if size is not None else 224
        yield Case(f"timm:{name}", lambda n=name: timm.create_model(n), side)
    for build in (Unet, FPN, DeepLabV3Plus):
        for encoder in ("resnet34", "efficientnet-b0", "mobilenet_v2"):
            name = f"smp:{build.__name__}-{encoder}"
            yield Case(name, lambda b=build, e=encoder: b(e, encoder_weights=None, classes=2), 128)
    steps: dict[str, Any] = {"channels": (16, 32, 64), "strides": (2, 2)}
    given: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    yield Case("monai:UNet", lambda: UNet(**given, **steps, num_res_units=2), 128, 1)
    yield Case("monai:BasicUNet", lambda: BasicUNet(**given), 128, 1)
    yield Case("monai:AttentionUnet", lambda: AttentionUnet(**given, **steps), 128, 1)


def _torchvision(name: str, **options: Any) -> torch.nn.Module:
    return torchvision.models.get_model(name, weights=None, **options)


def measure(case: Case, module: HyperInitializer, theta: Any) -> dict[str, Any]:
    """Traces a model, writes its parameters, and returns its row."""
    model = case.make()
    shape = (2, case.channels, case.size, case.size)
    started = time.perf_counter()
    traced = trace(model, [torch.zeros(shape)], {})
    traced_at = time.perf_counter()
    values = write(module, theta, traced, jax.random.key(0))
    written_at = time.perf_counter()
    found = coverage(traced)
    parameters = dict(model.named_parameters())
    rows = {row.path: row for row in found.rows}
    lost = [
        name
        for name, parameter in parameters.items()
        if name not in rows
        or (rows[name].status == "predicted" and _misshapen(values.get(name), parameter))
    ]
    layers = {
        f"{prefix}.{name}" if prefix else name
        for prefix, layer in model.named_modules()
        if isinstance(layer, LAYERS)
        for name, _ in layer.named_parameters(recurse=False)
    } & parameters.keys()
    unused = {name for name in layers if rows[name].reason == UNUSED}
    counted = {
        name: parameters[name].numel()
        for name in layers - unused
        if rows[name].status != "excluded"
    }
    predicted = sum(n for name, n in counted.items() if rows[name].status == "predicted")
    reasons: dict[str, int] = {}
    for row in found.rows:
        if row.status == "fallback":
            reasons[row.reason] = reasons.get(row.reason, 0) + 1
    return {
        "model": case.name,
        "tensors": len(parameters),
        "tensors_lost": len(lost),
        "share_predicted": predicted / max(sum(counted.values()), 1),
        "unused_layers": len(unused),
        "off_path": off_path(traced),
        "nodes": found.nodes,
        "edges": found.edges,
        "fallbacks": reasons,
        "trace_s": traced_at - started,
        "write_s": written_at - traced_at,
    }


def _misshapen(value: Any, parameter: torch.Tensor) -> bool:
    return value is None or value.shape != tuple(parameter.shape) or not np.isfinite(value).all()


def off_path(traced: Traced) -> int:
    """Returns how many nodes with kernels or norms no path joins with an input.

    All nodes lead to an output: the others are not part of a traced model.
    """
    graph = traced.graph
    inputs = np.flatnonzero(graph.node_type == TYPE_INDEX["input"])
    direct = graph.distance == 1
    reached = set(inputs.tolist())
    # Receivers are sorted and nodes in topological order, so one pass is enough.
    for sender, receiver in zip(graph.senders[direct], graph.receivers[direct], strict=True):
        if int(sender) in reached:
            reached.add(int(receiver))
    weights = [i for i, p in enumerate(graph.parameters) if p and p[1] in ("kernel", "norm")]
    return sum(i not in reached for i in weights)


def summary(rows: list[dict[str, Any]], errors: dict[str, str]) -> dict[str, Any]:
    """Returns what the benchmark prints."""
    return {
        "models": len(rows) + len(errors),
        "errors": len(errors),
        "tensors_lost": sum(row["tensors_lost"] for row in rows),
        "share_predicted": min((row["share_predicted"] for row in rows), default=math.nan),
        "off_path": sum(row["off_path"] for row in rows),
        "rows": rows,
        "failed": errors,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Traces and writes well-known PyTorch models.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", default="", help="only models whose name starts so")
    options = parser.parse_args()
    module = HyperInitializer(max_shape=(64, 64, 11, 11), num_classes=4, node_types=len(NODE_TYPES))
    theta = jax.device_get(init_theta(module, jax.random.key(0))["params"])
    rows, errors = [], {}
    for case in cases():
        if not case.name.startswith(options.only):
            continue
        try:
            row = measure(case, module, theta)
        except Exception as error:
            errors[case.name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{case.name:<44} {errors[case.name][:120]}", file=sys.stderr, flush=True)
            continue
        rows.append(row)
        fallbacks = "; ".join(f"{n} x {why}" for why, n in row["fallbacks"].items())
        print(
            f"{case.name:<44} {row['tensors']:>5} tensors  {row['share_predicted']:.4f}  "
            f"{row['nodes']:>4} nodes {row['edges']:>5} edges  {row['trace_s']:5.1f} s  "
            f"{row['write_s']:5.1f} s  {fallbacks}",
            file=sys.stderr,
            flush=True,
        )
    found = summary(rows, errors)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name in ("models", "errors", "tensors_lost", "share_predicted", "off_path"):
            print(f"{name:<18} {found[name]}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
