"""The size that a compressed image declares in its own head: JPEG, JPEG-LS and JPEG 2000."""

from __future__ import annotations

import struct

_JPEG, _J2K, _JP2 = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  "
# Start of frame of all kinds of JPEG, and of JPEG-LS; C4, C8 and CC are tables.
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})


def frame_size(data: bytes) -> tuple[int, int] | None:
    """Reads height and width from the head of a compressed image.

    Returns:
        (height, width), or None where the head is of another kind or cut short.
    """
    if data.startswith(_JPEG):
        return _jpeg_size(data)
    start = data.find(_J2K) if data.startswith(_JP2) else 0
    if start >= 0 and data[start : start + 4] == _J2K and len(data) >= start + 24:
        right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
        return bottom - top, right - left
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8:
            # A filler, or a marker without length.
            place += 1 if marker == 0xFF else 2
        elif marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return height, width
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    return None
