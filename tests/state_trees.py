"""Flat states and trees of tensors, compared bit for bit."""

import numpy as np


def tree(flat):
    """Returns {module: {leaf: array}} of {"module/leaf": array}."""
    nested = {}
    for name, value in flat.items():
        module, leaf = name.rsplit("/", 1)
        nested.setdefault(module, {})[leaf] = value
    return nested


def assert_same(a, b):
    """Holds that two states {name: array} are equal in names, shapes, dtypes and values."""
    assert {k: (v.shape, v.dtype) for k, v in a.items()} == {
        k: (v.shape, v.dtype) for k, v in b.items()
    }
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)
