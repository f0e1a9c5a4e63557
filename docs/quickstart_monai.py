"""MONAI: a U-Net from a learned start, which learns to find vessels on one drawn batch."""

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet

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

# Transposed convolutions were not in the initializer's training: they are treated as the nearest
# layers that were. The slopes of PReLU have no rule and keep MONAI's own start.
model = UNet(
    spatial_dims=2,
    in_channels=3,
    out_channels=1,
    channels=(16, 32, 64, 128),
    strides=(2, 2, 2),
    num_res_units=2,
    norm="batch",
)
coverage = initialize(model, images, initializer, unknown_types="nearest")
print(coverage)

# From here on it is your own training.
optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
criterion = DiceCELoss(sigmoid=True)
losses = []
for _ in range(10):
    loss = criterion(model(images), vessels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"{coverage.share():.1%} of the parameters predicted")
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
