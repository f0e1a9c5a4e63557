"""The field of view of a fundus photograph: found by brightness, cut to a square around it."""

import cv2
import numpy as np

_WORKING_SIDE = 256


def fov_mask(image: np.ndarray, share: float = 0.06) -> tuple[np.ndarray, bool]:
    """Finds the bright field of a fundus photograph.

    Args:
        image: uint8 (H, W, 3).
        share: The field is brighter than this share of the 99th percentile of brightness; more
            than the usual where a camera leaves the rest of the picture gray.

    Returns:
        bool (H, W), and whether a field was found; if it would cover less than 10 % or more than
        99.5 % of the image, the field is the whole image and the answer is False.
    """
    height, width = image.shape[:2]
    scale = min(1.0, _WORKING_SIDE / max(height, width))
    small_size = (max(1, round(width * scale)), max(1, round(height * scale)))
    bright = cv2.resize(image, small_size, interpolation=cv2.INTER_AREA).max(axis=-1)
    bright = cv2.blur(bright.astype(np.float32), (3, 3))
    threshold = max(10.0, share * float(np.percentile(bright, 99)))
    count, regions, stats, _ = cv2.connectedComponentsWithStats((bright > threshold).astype("u1"))
    if count > 1:
        largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
        contours, _ = cv2.findContours(
            (regions == largest).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        # Filled outer contours close the dark holes, such as the fovea of a dim picture.
        filled = np.zeros(regions.shape, np.uint8)
        cv2.drawContours(filled, contours, -1, 1, thickness=cv2.FILLED)
        if 0.10 <= filled.mean() <= 0.995:
            full = cv2.resize(filled, (width, height), interpolation=cv2.INTER_NEAREST)
            return full.astype(bool), True
    return np.ones((height, width), bool), False


def circle_crop(image: np.ndarray) -> np.ndarray:
    """Cuts a fundus photograph to the square around its field, padded with black.

    Top and bottom are never cut off: a field flattened by the camera keeps its black margins.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        uint8 (S, S, 3), S the longer side of the field's bounding box.
    """
    return crop_to(image, fov_mask(image)[0])


def crop_to(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Cuts an image to the square around a field, padded with black.

    Args:
        image: uint8 (H, W, 3).
        mask: bool (H, W), not empty.

    Returns:
        uint8 (S, S, 3), S the longer side of the field's bounding box.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    height, width = int(bottom - top), int(right - left)
    side = max(height, width)
    square = np.zeros((side, side, 3), np.uint8)
    y, x = (side - height) // 2, (side - width) // 2
    square[y : y + height, x : x + width] = image[top:bottom, left:right]
    return square
