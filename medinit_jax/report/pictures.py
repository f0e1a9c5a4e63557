"""Sample images as the network sees them, embedded in the page."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from medinit_jax.report.markup import Html, element

_MOST = 8
TURNS = ("0°", "90°", "180°", "270°")


def data_uri(image: np.ndarray) -> str:
    """Encode an image as a PNG inside an address.

    Args:
        image: (H, W, 3) or (H, W) uint8; other types are stretched to the full range.

    Returns:
        "data:image/png;base64,...".
    """
    array = np.asarray(image)
    if array.dtype != np.uint8:
        low, high = float(np.min(array)), float(np.max(array))
        array = ((array - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def gallery(samples: dict[str, np.ndarray]) -> Html | None:
    """Cards of an image, its label and the rotated views that the pretext asks about.

    Args:
        samples: images uint8 (n, H, W, 3), views uint8 (n, v, H, W, 3) or (n, H, W, 3), targets
            (n, v) or (n,), labels (n,); all but the images may be absent.

    Returns:
        The cards, or None without images.
    """
    images = samples.get("images")
    if images is None or images.ndim < 3 or len(images) == 0:
        return None
    number = min(len(images), _MOST)
    views = _per_image(samples.get("views"), number, 5)
    targets = _per_image(samples.get("targets"), number, 2)
    labels = samples.get("labels")
    cards = []
    for i in range(number):
        label = None
        if labels is not None and i < len(labels):
            label = f"label {labels[i]}"
        turned = []
        for k, view in enumerate(views[i] if views is not None else ()):
            turn = int(targets[i, k]) if targets is not None and k < targets.shape[1] else None
            name = TURNS[turn] if turn is not None and 0 <= turn < 4 else str(turn or "view")
            turned.append(_figure(view, name, f"view of image {i}, turned by {name}"))
        cards.append(
            element(
                "div",
                element(
                    "div", _figure(images[i], label or "image", f"image {i}"), class_="original"
                ),
                element("div", turned, class_="views") if turned else None,
                class_="card",
            )
        )
    return element("div", cards, class_="gallery")


def _per_image(array: Any, number: int, axes: int) -> np.ndarray | None:
    """An array with an axis of views after that of the images, or None if it cannot be one."""
    if array is None or array.ndim not in (axes - 1, axes) or len(array) < number:
        return None
    return array if array.ndim == axes else array[:, None]


def _figure(image: np.ndarray, name: str, alternative: str) -> Html:
    height, width = image.shape[:2]
    picture = element(
        "img", src=data_uri(image), alt=alternative, width=int(width), height=int(height)
    )
    return element("figure", picture, element("figcaption", name))
