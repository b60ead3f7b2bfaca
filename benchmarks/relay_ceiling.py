"""The bare relay as a server process: opens socket pairs as asked on stdin, then relays until it is ended."""

from __future__ import annotations

import socket
import sys

from benchmarks._ceiling.relay import relay

SOL_UDP, UDP_GRO = 17, 104


def main() -> None:
    """Each line `host port host port` names a client and its peer and is answered with two ports; `run` relays."""
    host, head = sys.argv[1], bytes.fromhex(sys.argv[2])
    sockets: list[socket.socket] = []
    for line in sys.stdin:
        if line.strip() == "run":
            break
        words = line.split()
        for far in ((words[0], int(words[1])), (words[2], int(words[3]))):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
            sock.bind((host, 0))
            sock.connect(far)
            sockets.append(sock)
        print(*(sock.getsockname()[1] for sock in sockets[-2:]), flush=True)
    relay([sock.fileno() for sock in sockets], head, int(sys.argv[3]))


if __name__ == "__main__":
    main()
