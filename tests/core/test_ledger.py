import json
import math

from medinit_jax.core.ledger import Ledger, finite


def test_results_survive_and_belong_to_their_subject(tmp_path):
    path = tmp_path / "evaluation.json"
    ledger = Ledger(path, "theta 1")
    assert "a" not in ledger
    ledger.add("a", {"auc": [0.5, math.nan]})
    again = Ledger(path, "theta 1")
    assert "a" in again and again["a"] == {"auc": [0.5, None]}
    assert "a" not in Ledger(path, "theta 2")


def test_a_damaged_file_counts_as_nothing_finished(tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text('{"subject": "theta 1", "pieces": {"a"')
    ledger = Ledger(path, "theta 1")
    assert "a" not in ledger
    ledger.add("b", 1)
    assert json.loads(path.read_text())["pieces"] == {"b": 1}


def test_only_numbers_that_are_not_finite_become_null():
    value = {"a": [1, 2.5, math.inf], "b": ("x", None, True)}
    assert finite(value) == {"a": [1, 2.5, None], "b": ["x", None, True]}
