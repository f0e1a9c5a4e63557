"""Names of tensors in the encoders of segmentation-models-pytorch.

Only encoders: its U-Net enlarges maps by repeating pixels, concatenates in the other order and
ends in a 3x3 convolution, and its DeepLabv3+ has separable convolutions, so that both are other
functions than ours.
"""

from __future__ import annotations

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.interop.places import Names
from medinit_jax.interop.timm_names import timm_names
from medinit_jax.interop.torchvision_names import torchvision_names

_AS_TORCHVISION = ("resnet", "vgg", "densenet")


def smp_names(name: str, family: str, program: Program, heads: object) -> Names:
    """Returns the names for the encoder of a network, or for a classifier without its head.

    Args:
        name: A network of the zoo.
        family: Name of its builder in `models`.
        program: The network.
        heads: Encoders have none.

    Raises:
        UsageError: The library's encoder of this name is another function, or there is none.
    """
    if family in _AS_TORCHVISION or name.endswith("mobilenet_v2"):
        return torchvision_names(name, family, program, heads)._replace(encoder_only=True)
    if family not in ("regnet", "efficientnet"):
        raise UsageError(
            f"segmentation-models-pytorch has no encoder that computes what {name} does"
        )
    names = timm_names(name, family, program, heads)
    below = "model." if family == "regnet" else ""
    return names._replace(rename=lambda own: below + names.rename(own), encoder_only=True)
