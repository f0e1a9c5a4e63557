import signal
import textwrap

import numpy as np
import pytest

from medinit_jax.data import decoder_process

JPEG_LOSSLESS, JPEG_LS = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"


@pytest.fixture
def stopped():
    decoder_process._stop()
    yield
    decoder_process._stop()


def stand_in(tmp_path, monkeypatch, body):
    """Puts a program in the place of the one that runs GDCM."""
    program = tmp_path / "program.py"
    program.write_text(
        "import io, os, sys\nimport numpy as np\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from medinit_jax.data.decoder_process import _receive, _send\n"
        "while True:\n"
        "    options, frame = _receive(sys.stdin.buffer)\n" + textwrap.indent(body, "    ")
    )
    monkeypatch.setattr(decoder_process, "__file__", str(program))


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
        array, kind = decoder_process.decode(b"four", "1.2", "gdcm", {"columns": 3})
        np.testing.assert_array_equal(array, np.full((2, 3), 4))
        assert kind == "1.2"
        with pytest.raises(ValueError, match="gdcm ends at this image"):
            decoder_process.decode(b"bad", "1.2", "gdcm", {})


def test_a_process_that_takes_too_long_is_ended(stopped, tmp_path, monkeypatch):
    monkeypatch.setattr(decoder_process, "_MOST_SECONDS", 0.5)
    stand_in(tmp_path, monkeypatch, "import time\ntime.sleep(60)\n")
    with pytest.raises(ValueError, match="gdcm ends at this image"):
        decoder_process.decode(b"slow", "1.2", "gdcm", {})


def test_what_gdcm_refuses_is_an_error(stopped):
    with pytest.raises(ValueError, match="."):
        decoder_process.decode(
            b"nothing", "1.2.840.10008.1.2.4.70", "gdcm", {"rows": 2, "columns": 2}
        )
    # The real program answered, and goes on.
    assert decoder_process._running is not None and decoder_process._running[0].poll() is None


# 10 x 45 pixels with some bits flipped, at which CharLS counts zeros for ten seconds.
ENDLESS = bytes.fromhex(
    "ffd8fff7000b08002d000a01011100ffda000801010002000057fdff7f00000071ff7fe0b5ff7c1cff7f052f"
    "fbe097ff7fc117fdf740fdd9"
)
GRAY = {
    "rows": 45,
    "columns": 10,
    "samples_per_pixel": 1,
    "bits_allocated": 8,
    "bits_stored": 8,
    "pixel_representation": 0,
    "photometric_interpretation": "MONOCHROME2",
    "pixel_keyword": "PixelData",
    "number_of_frames": 1,
}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no time of the processor is measured")
def test_an_image_at_which_a_decoder_does_not_end_is_refused_in_time(stopped):
    jpeg_ls = pytest.importorskip("jpeg_ls")
    image = np.arange(450, dtype=np.uint8).reshape(45, 10)
    whole = bytes(jpeg_ls.encode_array(image))
    array, kind = decoder_process.decode(whole, JPEG_LS, "pyjpegls", GRAY)
    np.testing.assert_array_equal(array, image)
    assert kind == "MONOCHROME2"
    with pytest.raises(ValueError, match="pyjpegls ends at this image or takes too long"):
        decoder_process.decode(ENDLESS, JPEG_LS, "pyjpegls", GRAY)
