"""A network from its description, in plain PyTorch: this file needs nothing else.

    from network import load

    model = load("DIR")
    answers = model(images)

DIR holds `network.json` and `model.safetensors` (or `pytorch_model.bin`); images are float32
(batch, channels, height, width) of the size that the description names, normalized as the card
beside it says. Parameters and buffers have the names of the file of weights, so that it loads
strictly, and the model trains like any other.
"""

# Without torch a type checker takes the file torch.py beside this one for it.
# pyright: reportAttributeAccessIssue=false

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional


def load(folder, device="cpu"):
    """Returns the network of a folder with its weights, in evaluation mode.

    Args:
        folder: Holds `network.json` and the weights.
        device: Where the network shall be.
    """
    folder = Path(folder)
    network = Network(json.loads((folder / "network.json").read_text(encoding="utf-8")))
    weights = folder / "model.safetensors"
    if weights.is_file():
        from safetensors.torch import load_file

        state = load_file(weights)
    else:
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    # Heads of a pretraining lie in the file too; the network does not read them.
    for name in network.description["beside"]:
        del state[name]
    network.load_state_dict(state, strict=True)
    return network.eval().to(device)


class Network(nn.Module):
    """A list of steps, each of which reads earlier values; the last one is the answer.

    Args:
        description: `tensors` {name: shape and role}, `steps` and `head`, as `network.json` has
            them. Value 0 is the image, value i the output of step i - 1.
    """

    def __init__(self, description):
        super().__init__()
        self.description = description
        for name, tensor in description["tensors"].items():
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in dict(owner.named_children()):
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            if tensor["role"] == "parameter":
                owner.register_parameter(leaf, nn.Parameter(torch.zeros(tensor["shape"])))
            else:
                dtype = torch.int64 if tensor["role"] == "counter" else torch.float32
                owner.register_buffer(leaf, torch.zeros(tensor["shape"], dtype=dtype))

    def forward(self, images):
        """Returns logits (batch, classes) or (batch, classes, height, width); features if no head.

        Args:
            images: Float (batch, channels, height, width).
        """
        return self.value(images, len(self.description["steps"]))

    def before_head(self, images):
        """Returns what the first layer of the head reads; the answer if there is no head."""
        head = self.description["head"]
        return self(images) if head is None else self.value(images, head)

    def value(self, images, number):
        """Returns a value of the network: 0 is the image, i the output of step i - 1."""
        steps = self.description["steps"][:number]
        last_use = {place: i for i, step in enumerate(steps) for place in step["of"]}
        held = {0: images}
        for i, step in enumerate(steps):
            held[i + 1] = self._run(step, [held[place] for place in step["of"]])
            for place in set(step["of"]):
                if last_use[place] == i and place != number:
                    del held[place]
        return held[number]

    def _run(self, step, values):
        tensors = {role: self._tensor(names) for role, names in step.get("tensors", {}).items()}
        return OPERATIONS[step["kind"]](step, tensors, self.training, *values)

    def _tensor(self, names):
        """Returns a tensor, put together if it is kept in parts, as that of several heads."""
        found = []
        for name in names:
            path, _, leaf = name.rpartition(".")
            found.append(getattr(self.get_submodule(path), leaf))
        return found[0] if len(found) == 1 else torch.cat(found)


def _over_channels(x, vector):
    """Shapes a vector of channels so that it broadcasts over (batch, channels, ...) or tokens."""
    return vector.reshape(-1, 1, 1) if x.ndim == 4 else vector.reshape(-1)


def _spatial_mean(x):
    return x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


def _conv(step, t, training, x):
    weight = t["weight"]
    if step["standardized"]:
        axes = (1, 2, 3)
        weight = weight - weight.mean(axes, keepdim=True)
        variance = weight.square().mean(axes, keepdim=True)
        weight = weight * torch.rsqrt(variance + step["epsilon"])
    return functional.conv2d(
        x, weight, t.get("bias"), step["stride"], step["padding"], step["dilation"], step["groups"]
    )


def _conv_t(step, t, training, x):
    return functional.conv_transpose2d(x, t["weight"], t.get("bias"), step["stride"])


def _dense(step, t, training, x):
    weight = t["weight"].flatten(1)
    if x.ndim == 4:
        return functional.conv2d(x, weight[:, :, None, None], t.get("bias"))
    return functional.linear(x, weight, t.get("bias"))


def _batch_norm(step, t, training, x):
    if training and "counter" in t:
        t["counter"].add_(1)
    return functional.batch_norm(
        x, t["mean"], t["var"], t["weight"], t["bias"], training, 0.1, step["epsilon"]
    )


def _layer_norm(step, t, training, x):
    if x.ndim == 4:
        x = x.permute(0, 2, 3, 1)
        return _layer_norm(step, t, training, x.flatten(1, 2)).reshape(x.shape).permute(0, 3, 1, 2)
    return functional.layer_norm(x, x.shape[-1:], t["weight"], t["bias"], step["epsilon"])


def _group_norm(step, t, training, x):
    if x.ndim == 3:
        return _group_norm(step, t, training, x.mT).mT
    return functional.group_norm(x, step["groups"], t["weight"], t["bias"], step["epsilon"])


def _attention(step, t, training, x):
    if x.ndim == 4:
        height, width = x.shape[2:]
        mixed = _attention(step, t, training, x.flatten(2).mT)
        return mixed.mT.unflatten(2, (height, width))
    # (3, batch, heads, tokens, size)
    parts = x.unflatten(2, (3, step["heads"], -1)).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


def _position(step, t, training, x):
    embedding = t["weight"]
    # Of a map it is kept as (1, height, width, channels).
    return x + (embedding.permute(0, 3, 1, 2) if x.ndim == 4 else embedding)


def _class_token(step, t, training, x):
    return torch.cat([t["weight"].reshape(1, 1, -1).expand(len(x), 1, -1), x], 1)


def _subsample(step, t, training, x):
    (height, width), (down, right), first = x.shape[2:], step["stride"], step["offset"]
    x = functional.pad(x, (0, first, 0, first))[:, :, first:, first:]
    return x[:, :, ::down, ::right][:, :, : -(-height // down), : -(-width // right)]


def _bilinear(step, t, training, x):
    return functional.interpolate(x, step["size"], mode="bilinear", align_corners=step["aligned"])


def _pad(step, t, training, x):
    top, left = step["padding"]
    return functional.pad(x, (left, left, top, top))


def _max_pool(step, t, training, x):
    return functional.max_pool2d(x, step["kernel"], step["stride"], step["padding"])


def _avg_pool(step, t, training, x):
    return functional.avg_pool2d(
        x, step["kernel"], step["stride"], step["padding"], count_include_pad=False
    )


def _plain(function):
    return lambda step, t, training, x: function(x)


OPERATIONS = {
    "conv": _conv,
    "conv_t": _conv_t,
    "dense": _dense,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "layer_scale": lambda step, t, training, x: x * _over_channels(x, t["weight"]),
    "class_token": _class_token,
    "position": _position,
    "attention": _attention,
    "tokens": _plain(lambda x: x.flatten(2).mT if x.ndim == 4 else x),
    "first_token": _plain(lambda x: x[:, 0]),
    "bilinear": _bilinear,
    "nearest": lambda step, t, training, x: functional.interpolate(
        x, step["size"], mode="nearest-exact"
    ),
    "pad": _pad,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_pool": lambda step, t, training, x: functional.adaptive_avg_pool2d(x, step["size"]),
    "global_pool": _plain(_spatial_mean),
    "squeeze": _plain(_spatial_mean),
    "flatten": _plain(lambda x: x.flatten(1)),
    "subsample": _subsample,
    "relu": _plain(functional.relu),
    "relu6": _plain(functional.relu6),
    "silu": _plain(functional.silu),
    "gelu": _plain(functional.gelu),
    "sigmoid": _plain(torch.sigmoid),
    "hard_sigmoid": _plain(functional.hardsigmoid),
    "hard_swish": _plain(functional.hardswish),
    "dropout": lambda step, t, training, x: functional.dropout(x, step["rate"], training),
    "zeros": _plain(torch.zeros_like),
    "add": lambda step, t, training, *xs: sum(xs[1:], xs[0]),
    "concat": lambda step, t, training, *xs: torch.cat(xs, -1 if xs[0].ndim == 3 else 1),
    "gate": lambda step, t, training, x, gate: x * gate[:, :, None, None],
}
