"""Photographs of a few pixels with made-up scores, as a labeler would give them."""

import numpy as np

from medinit_jax.swcl.patch_plan import Eye, plan_pairs

SIDE, CROP = 13, 8


def eyes(patients=3, sources=("eyepacs", "oia-odir")):
    """Returns both eyes of every patient; in the second set, every third eye is normal."""
    found = []
    for place, source in enumerate(sources):
        for patient in range(1, patients + 1):
            for eye in ("left", "right"):
                index = len(found)
                label = (0 if index % 3 == 0 else 1) if place else -1
                found.append(Eye(source, str(patient), eye, index, label))
    return found


def shown(eye):
    """Returns photograph and scores of an eye, which follow from its number."""
    rng = np.random.default_rng(eye.index)
    image = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return image, rng.uniform(0, 1, 5).astype(np.float32)


def scored(wanted):
    """Scores eyes one after the other."""
    for eye in wanted:
        yield shown(eye)


def plan(patients=3, **options):
    """Returns a plan of `eyes`."""
    return plan_pairs(eyes(patients, **options))


def content(folder):
    """Returns {path: bytes} of all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
