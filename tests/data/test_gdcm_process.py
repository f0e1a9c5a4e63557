import textwrap

import numpy as np
import pytest

from medinit_jax.data import gdcm_process


@pytest.fixture
def stopped():
    gdcm_process._stop()
    yield
    gdcm_process._stop()


def stand_in(tmp_path, monkeypatch, body):
    """Puts a program in the place of the one that runs GDCM."""
    program = tmp_path / "program.py"
    program.write_text(
        "import io, os, sys\nimport numpy as np\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from medinit_jax.data.gdcm_process import _receive, _send\n"
        "while True:\n"
        "    options, frame = _receive(sys.stdin.buffer)\n" + textwrap.indent(body, "    ")
    )
    monkeypatch.setattr(gdcm_process, "__file__", str(program))


def test_the_end_of_the_process_is_an_error_and_the_next_image_has_a_new_one(
    stopped, tmp_path, monkeypatch
):
    body = """
if frame == b"bad":
    os.abort()
stream = io.BytesIO()
np.save(stream, np.full((2, options["columns"]), len(frame)))
_send(sys.stdout.buffer, {"kind": options["syntax"]}, stream.getvalue())
"""
    stand_in(tmp_path, monkeypatch, body)
    for _ in range(2):
        array, kind = gdcm_process.decode(b"four", "1.2", {"columns": 3})
        np.testing.assert_array_equal(array, np.full((2, 3), 4))
        assert kind == "1.2"
        with pytest.raises(ValueError, match="GDCM ends at this image"):
            gdcm_process.decode(b"bad", "1.2", {})


def test_a_process_that_takes_too_long_is_ended(stopped, tmp_path, monkeypatch):
    monkeypatch.setattr(gdcm_process, "_SECONDS", 0.5)
    stand_in(tmp_path, monkeypatch, "import time\ntime.sleep(60)\n")
    with pytest.raises(ValueError, match="GDCM ends at this image"):
        gdcm_process.decode(b"slow", "1.2", {})


def test_what_gdcm_refuses_is_an_error(stopped):
    with pytest.raises(ValueError, match="."):
        gdcm_process.decode(b"nothing", "1.2.840.10008.1.2.4.70", {"rows": 2, "columns": 2})
    # The real program answered, and goes on.
    assert gdcm_process._running is not None and gdcm_process._running[0].poll() is None
