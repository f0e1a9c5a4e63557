"""A trained network, or a predicted one, for PyTorch and others: weights, proof and card.

    python -m medinit_jax.main --config=configs/export.py --workdir=exported \
        --config.checkpoint=runs/finetune-aptos_dr --config.to=torchvision
    python -m medinit_jax.main --config=configs/export.py --workdir=start --config.to=timm \
        --config.initializer=runs/hyper --config.model.name=resnet50 --config.num_classes=5

`checkpoint` is the workdir of a fine-tuning, a labeler or a pretraining (or its model/ or
checkpoints/ folder); of a run that was stopped the newest checkpoint is taken. `to` is whose names
the tensors have: `torchvision`, `timm`, `authors` (SWCL's), `smp` (encoders of segmentation-models-
pytorch), `bit` (BiT's archives) or `flax` (this package's). The workdir gets `model.safetensors`,
`card.json` and `CARD.md`: images with checksums and licenses, preprocessing, figures with
intervals, configuration, and the lines of Python that load it. Where no library has such a network,
as a U-Net or a narrow ResNet, `network.py` and `network.json` beside the weights are the network in
plain PyTorch.

Nothing of this needs PyTorch. If it is installed, the weights are loaded strictly into the
library's own class, both networks see the same images, and an export whose answers differ is
refused.

Time: seconds; with `proof.test` that of both networks on the test images.
"""

from ml_collections import ConfigDict

from medinit_jax.core.config import beside


def get_config() -> ConfigDict:
    """Returns the export; see the head of this file."""
    config = ConfigDict()
    config.route = "export"
    config.checkpoint = ""
    config.initializer = ""
    # Of the network that an initializer predicts; what the keys mean is said there.
    config.model = beside(__file__, "finetune").get_config().model
    config.model.name = ""
    config.num_classes = 2
    # Side of its images in pixels.
    config.size = 224
    # Of what is not predicted, the head above all.
    config.seed = 42
    config.to = "torchvision"
    # Whether pytorch_model.bin is written, too.
    config.pytorch_bin = False
    config.proof = ConfigDict(
        {
            # Images of noise that both networks see, and their seed.
            "images": 2,
            "seed": 0,
            # Largest difference of logits and features, as a share of their range.
            "tolerance": 1e-4,
            # Whether the task's metric on its test images is compared, too, by the same tolerance.
            "test": False,
            "batch": 8,
            # Where the task's sets are prepared; "" = where the run had them.
            "data_dir": "",
        }
    )
    # Exports numbers that are not finite, and in spite of a failed proof.
    config.force = False
    config.note = ""
    config.cache_dir = ""
    return config.lock()
