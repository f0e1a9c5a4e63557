import numpy as np

from medinit_jax.core.provenance import code_version, fingerprint, provenance


def test_a_fingerprint_depends_on_names_shapes_and_values_alone():
    tree = {"a": {"x": np.arange(6.0).reshape(2, 3), "y": np.ones(2, np.float32)}}
    turned = {"a": dict(reversed(tree["a"].items()))}
    assert fingerprint(turned) == fingerprint(tree) and len(fingerprint(tree)) == 64
    others = [
        {"b": tree["a"]},
        {"a": {**tree["a"], "x": tree["a"]["x"].reshape(3, 2)}},
        {"a": {**tree["a"], "y": np.zeros(2, np.float32)}},
        {"a": {**tree["a"], "y": np.ones(2, np.float64)}},
    ]
    assert len({fingerprint(other) for other in [tree, *others]}) == 5


def test_provenance_names_code_and_machine():
    found = provenance("the command", "toy")
    assert found["command"] == "the command" and found["config_name"] == "toy"
    assert found["code_version"] == code_version() and found["cores"] >= 1
    assert found["date"].endswith(" UTC")
