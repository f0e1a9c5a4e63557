"""In PYTHONPATH: a Python that reaches nothing beyond its own machine, and notes what it tried."""

import os
import sys

NAMED = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
SENT = ("socket.connect", "socket.sendto", "socket.sendmsg")


def refuse(event, arguments):
    if event in SENT and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event in NAMED:
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host or "")
    if host in ("", "localhost", "::1", "0.0.0.0") or host.startswith("127."):
        return
    # A library may go on after the refusal, so that the note is what a test looks at.
    if path := os.environ.get("NETWORK_NOTES"):
        with open(path, "a") as notes:
            notes.write(f"{event} {host}\n")
    raise PermissionError(f"the network is out of bounds: {event} {host}")


sys.addaudithook(refuse)
