"""Decoders in a process of their own: at damaged images GDCM may end it, CharLS goes on and on.

Run as a program, it decodes frames that come through its standard input. A message is two lengths
(8 bytes each), JSON and bytes; an answer is the same: {"error"}, or {"kind"} and a .npy array.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

# Of the processor, and more for each sample: at least five times what a whole image takes.
_SECONDS, _SECONDS_PER_SAMPLE = 1.0, 0.25e-6
# By the clock, where the system measures no other time or the process waits for something.
_MOST_SECONDS = 60
_lock = threading.Lock()
# The process and the id of the process that started it: a fork must not use its parent's.
_running: tuple[subprocess.Popen[bytes], int] | None = None


def decode(
    frame: bytes, syntax: str, plugin: str, options: dict[str, Any]
) -> tuple[np.ndarray, str]:
    """Decodes one frame.

    Args:
        frame: The compressed frame.
        syntax: UID of the transfer syntax.
        plugin: Which of pydicom's plugins decodes it.
        options: Of pydicom's decoder, numbers and text only.

    Returns:
        The array and its photometric interpretation.

    Raises:
        ValueError: It cannot be decoded.
    """
    with _lock:
        process = _process()
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None and stdout is not None
        timer = threading.Timer(_MOST_SECONDS, process.kill)
        timer.start()
        try:
            _send(stdin, {"syntax": syntax, "plugin": plugin, **options}, frame)
            answer, content = _receive(stdout)
        except (OSError, EOFError):
            _stop()
            raise ValueError(
                f"{plugin} ends at this image or takes too long: it must be damaged"
            ) from None
        finally:
            timer.cancel()
    if "error" in answer:
        raise ValueError(answer["error"])
    return np.load(io.BytesIO(content), allow_pickle=False), answer["kind"]


def _process() -> subprocess.Popen[bytes]:
    global _running
    if _running is None or _running[1] != os.getpid():
        process = subprocess.Popen(
            # -P: the modules beside this file are no top-level ones.
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        _running = process, os.getpid()
    return _running[0]


@atexit.register
def _stop() -> None:
    global _running
    if _running is not None and _running[1] == os.getpid():
        process = _running[0]
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    # What was not yet written goes nowhere.
                    pass
    _running = None


def _send(stream: IO[bytes], values: dict[str, Any], content: bytes) -> None:
    text = json.dumps(values).encode()
    stream.write(struct.pack("<QQ", len(text), len(content)) + text + content)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    lengths = struct.unpack("<QQ", _exactly(stream, 16))
    text, content = (_exactly(stream, length) for length in lengths)
    return json.loads(text), content


def _exactly(stream: IO[bytes], length: int) -> bytes:
    content = stream.read(length)
    if len(content) < length:
        raise EOFError
    return content


@contextlib.contextmanager
def _limited(options: dict[str, Any]) -> Iterator[None]:
    """Ends this process if it works too long on an image, even within a decoder."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    size = math.prod(options.get(name, 1) for name in ("rows", "columns", "samples_per_pixel"))
    # The signal's own action ends the process; a handler in Python would wait for the decoder.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, _SECONDS + size * _SECONDS_PER_SAMPLE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _serve() -> None:
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    # Whatever C++ prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            options, frame = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            decoder = get_decoder(UID(options.pop("syntax")))
            plugin = options.pop("plugin")
            with _limited(options):
                array, properties = decoder.as_array(
                    encapsulate([frame]), index=0, decoding_plugin=plugin, **options
                )
            stream = io.BytesIO()
            np.save(stream, array, allow_pickle=False)
            kind = str(properties["photometric_interpretation"])
            _send(answers, {"kind": kind}, stream.getvalue())
        except Exception as error:
            _send(answers, {"error": " ".join(str(error).split())}, b"")


if __name__ == "__main__":
    _serve()
