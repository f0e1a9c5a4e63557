import json

import ml_collections
import pytest

from medinit_jax.core.provenance import provenance
from medinit_jax.core.secrets import redacted
from medinit_jax.core.workdir import claim_workdir, write_json


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("https://me:pass@host/x", "https://***@host/x"),
        ("git+ssh://token@host", "git+ssh://***@host"),
        ("'s3://k%3A1:p-w.1@host:80/a@b'", "'s3://***@host:80/a@b'"),
        ("x?a=1&access_token=abc&b=2", "x?a=1&access_token=***&b=2"),
        ("x?X-Amz-Signature=a/b+c", "x?X-Amz-Signature=***"),
        # No address, or none with a name in it.
        ("gs://bucket/me@host", "gs://bucket/me@host"),
        ("me@example.org token=1 a:b@c", "me@example.org token=1 a:b@c"),
        ("x?size=3&keys", "x?size=3&keys"),
    ],
)
def test_what_gives_access_is_left_out(given, wanted):
    assert redacted(given) == wanted
    assert json.loads(redacted(json.dumps({"a": [given]}))) == {"a": [wanted]}


def test_json_and_provenance_are_without_it(tmp_path):
    write_json(tmp_path / "x.json", {"b": ["https://me:pass@host"], "a": 1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1, "b": ["https://***@host"]}
    assert "pass" not in provenance("main --config.data.path=https://me:pass@host", "x")["command"]


def test_a_workdir_knows_its_configuration_again(tmp_path):
    config = ml_collections.ConfigDict({"path": "https://me:pass@host"})
    assert not claim_workdir(tmp_path / "run", config, "x")
    # Another password is no other run.
    config.path = "https://me:other@host"
    assert claim_workdir(tmp_path / "run", config, "x")
