import json
import math

from processes import begin, free_port, needs_gloo, outcome

from medinit_jax.core.ledger import Ledger, finite


def test_results_survive_and_belong_to_their_subject(tmp_path):
    path = tmp_path / "evaluation.json"
    ledger = Ledger(path, "theta 1")
    assert "a" not in ledger
    ledger.add("a", {"auc": [0.5, math.nan]})
    again = Ledger(path, "theta 1")
    assert "a" in again and again["a"] == {"auc": [0.5, None]}
    assert "a" not in Ledger(path, "theta 2")


def test_what_other_processes_kept_when_they_were_stopped_is_taken_in(tmp_path):
    path = tmp_path / "evaluation.json"
    Ledger(path, "theta 1").add("a", 1)
    Ledger(tmp_path / "evaluation-1.json", "theta 1").add("b", 2.5)
    Ledger(tmp_path / "evaluation-2.json", "theta 0").add("c", 3)
    ledger = Ledger.shared(path, "theta 1")
    assert ledger["a"] == 1 and ledger["b"] == 2.5 and "c" not in ledger
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]
    assert Ledger(path, "theta 1")["b"] == 2.5


def test_pieces_that_are_there_are_not_found_again(tmp_path):
    ledger, said = Ledger(tmp_path / "evaluation.json", "theta 1"), []
    ledger.add("b", 1)
    ledger.divide({"a": lambda: [0.1, math.inf], "b": lambda: 1 / 0}, said.append)
    assert ledger["a"] == [0.1, None] and ledger["b"] == 1 and said == ["a", "b"]


TWO = """
    import sys
    from pathlib import Path
    from medinit_jax.core import cluster
    from medinit_jax.core.ledger import Ledger
    from medinit_jax.core.membership import Cluster, joined

    rank, path = int(sys.argv[2]), Path(sys.argv[3])
    with joined(Cluster("", sys.argv[1], 2, rank, 60)):
        ledger, found = Ledger.shared(path, "theta 1"), []
        pieces = {name: lambda name=name: found.append(name) or [name, 0.1] for name in "abcde"}
        told = []
        ledger.divide(pieces, told.append)
        print("".join(found), "".join(sorted(told)), [ledger[name] for name in pieces])
        cluster.meet()
"""


@needs_gloo
def test_two_processes_divide_what_is_not_there(tmp_path):
    path, place = tmp_path / "evaluation.json", f"127.0.0.1:{free_port()}"
    # As after a stop: the second process had come to the end of its share.
    for name in "bd":
        Ledger(tmp_path / "evaluation-1.json", "theta 1").add(name, [name, 0.1])
    found = outcome([begin(TWO, [place, rank, path]) for rank in range(2)])
    assert [code for code, *_ in found] == [0, 0], found
    wanted = str([[name, 0.1] for name in "abcde"])
    assert [out for _, out, _ in found] == [f"ace abcde {wanted}\n", f" abcde {wanted}\n"]
    # Each has all, so that whichever is stopped later loses nothing.
    for file in ("evaluation.json", "evaluation-1.json"):
        assert sorted(json.loads((tmp_path / file).read_text())["pieces"]) == list("abcde")


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
