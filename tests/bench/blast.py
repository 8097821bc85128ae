"""One TCP stream as fast as the kernel goes.

    blast.py recv PORT             prints bytes received each time the sender asks
    blast.py send ADDR PORT        each line "SECONDS" on stdin: sends for that long, then
                                   prints {"bytes", "seconds"} as the receiver counted them

A burst ends with its length on the stream, so the receiver knows when it has it all; its
clock runs from the burst's first byte to its last.
"""

from __future__ import annotations

import json
import socket
import sys
import time

CHUNK = 1 << 20
MORE, LAST = b"\x01", b"\x02"


def receive(port: int) -> None:
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    print("ready", flush=True)
    connection, _ = server.accept()
    view = memoryview(bytearray(CHUNK))
    while True:
        total, began, last = 0, 0.0, 0
        while last != LAST[0]:
            count = connection.recv_into(view)
            if not count:
                return
            began = began or time.monotonic()
            total += count
            last = view[count - 1]
        connection.sendall(
            json.dumps({"bytes": total, "seconds": time.monotonic() - began}).encode() + b"\n"
        )


def send(addr: str, port: int) -> None:
    connection = socket.create_connection((addr, port))
    answers = connection.makefile("rb")
    chunk = MORE * CHUNK
    print("ready", flush=True)
    for line in sys.stdin:
        end = time.monotonic() + float(line)
        while time.monotonic() < end:
            connection.sendall(chunk)
        connection.sendall(LAST)
        print(answers.readline().decode(), end="", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "recv":
        receive(int(sys.argv[2]))
    else:
        send(sys.argv[2], int(sys.argv[3]))
