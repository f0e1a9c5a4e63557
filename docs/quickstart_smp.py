"""segmentation-models-pytorch: a U-Net on a ResNet-18, of which only the encoder is predicted."""

import numpy as np
import segmentation_models_pytorch as smp
import torch

import medinit_jax
from medinit_jax.data.phantoms import fundus
from medinit_jax.interop.torch import initialize

torch.manual_seed(0)
initializer = medinit_jax.load("medinit-fundus")
seen = initializer.metadata["preprocessing"]

# Your images here, brought to the mean and deviation that the initializer was trained with.
drawn = [fundus.render(seed, size=64) for seed in range(8)]
images = (np.stack([one["image"] for one in drawn]) / 255 - seen["mean"]) / seen["std"]
images = torch.tensor(images, dtype=torch.float32).permute(0, 3, 1, 2)
vessels = torch.tensor(np.stack([one["masks"]["vessels"] for one in drawn]))[:, None].float()

# The encoder takes predicted values; decoder and head keep the library's own start.
model = smp.Unet("resnet18", encoder_weights=None, decoder_channels=(64, 32, 32, 16, 16))
coverage = initialize(model, images, initializer, only="encoder")
print(coverage)

# From here on it is your own training.
optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
criterion = smp.losses.DiceLoss("binary")
losses = []
for _ in range(10):
    loss = criterion(model(images), vessels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"{coverage.share():.1%} of the parameters predicted")
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
