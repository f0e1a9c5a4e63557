"""The runs that nothing interrupts, once for all tests, and the tally of what was struck."""

import collections
import json
import os
from pathlib import Path

import chaos_runs
import pytest
from tiny_hyper import write_images


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Returns where images lie; sets are drawn there by the first run that needs them."""
    folder = tmp_path_factory.mktemp("chaos") / "data"
    folder.mkdir()
    write_images(folder / "images.npz")
    return folder


@pytest.fixture(scope="session")
def whole(data, tmp_path_factory):
    """Returns a function: route to (seconds, result) of its run that nothing interrupts."""
    made = {}

    def run(route):
        if route.name not in made:
            workdir = tmp_path_factory.mktemp(route.name) / "whole"
            seconds = chaos_runs.run(route, data, workdir).seconds
            made[route.name] = (seconds, route.result(workdir))
        return made[route.name]

    return run


@pytest.fixture(scope="session")
def tally():
    """Returns a function that counts (route, kind, what became of it).

    With MEDINIT_CHAOS_TABLE in the environment the counts are written to that file.
    """
    counts = collections.Counter()

    def add(*row):
        counts[row] += 1
        place = os.environ.get("MEDINIT_CHAOS_TABLE")
        if place:
            rows = [[*row, count] for row, count in sorted(counts.items())]
            Path(place).write_text(json.dumps(rows, indent=1) + "\n")

    return add
