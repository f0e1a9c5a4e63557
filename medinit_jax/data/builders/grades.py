"""What sets of graded fundus photographs share: their classes, and labels matched with files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from etils import epath

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.layout import Tree, normal

# The International Clinical Diabetic Retinopathy scale, 0 to 4.
GRADES = ("no_dr", "mild", "moderate", "severe", "proliferative")


def matched(
    builder: Builder, tree: Tree, names: Sequence[str], images: Mapping[str, epath.Path]
) -> dict[str, epath.Path]:
    """Returns {name: its image}; names and files are compared without case.

    Images that no label names are listed in `builder.ignored`.

    Args:
        builder: The dataset.
        tree: Folder of the images, for messages.
        names: Names of a table.
        images: {stem: file}.

    Raises:
        DatasetLayoutError: E_ORPHAN: a name has no image.
    """
    files = {normal(stem): path for stem, path in images.items()}
    missing = [name for name in names if normal(name) not in files]
    builder.refuse_orphans(tree, missing, len(names), "image")
    unnamed = sorted(set(files) - {normal(name) for name in names})
    if unnamed:
        builder.ignored += [f"{files[stem].name}: no label" for stem in unnamed]
        logging.warning("%d images in %s have no label: left out.", len(unnamed), tree.path)
    return {name: files[normal(name)] for name in names if normal(name) in files}
