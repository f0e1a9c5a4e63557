"""timm: a ResNet-18 from a learned start, trained on one batch of drawn fundus photographs."""

import numpy as np
import timm
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
labels = torch.tensor([int(one["labels"]["grade"] > 0) for one in drawn])

# The model is written in place; printed is what became of every parameter.
model = timm.create_model("resnet18", num_classes=2)
coverage = initialize(model, images, initializer)
print(coverage)

# From here on it is your own training.
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
losses = []
for _ in range(10):
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"{coverage.share():.1%} of the parameters predicted")
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
