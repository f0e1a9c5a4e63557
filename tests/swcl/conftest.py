"""Drawn sets and made patches, shared by the tests of this room."""

import pytest
from tiny_pretrain import tiny_zoo, write_patches


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Returns where sets are drawn, with patches/ in the layout of SWCL's authors."""
    folder = tmp_path_factory.mktemp("prepared")
    write_patches(folder / "patches")
    return folder


@pytest.fixture(scope="session")
def tinynet():
    """Lets the zoo know the network of `tiny_pretrain`."""
    with tiny_zoo():
        yield
