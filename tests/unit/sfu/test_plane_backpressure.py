"""A socket whose send buffer is full: video goes to the end of its frame, audio waits, nothing spins (IO-2).

Loopback never fills a send buffer, so these run in a network namespace of their own, on a TUN device behind a slow
queue.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

NAMESPACE = ["unshare", "--net", "--map-root-user", "--user"] if os.geteuid() else ["unshare", "--net"]


PROBE = "ip tuntap add dev probe mode tun"


def can_make_a_tun() -> bool:
    try:
        return subprocess.run([*NAMESPACE, *PROBE.split()], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


SETUP = """
    import fcntl, os, socket, struct, subprocess, time
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"slow", 0x1001))
    for command in (
        "ip addr add 10.9.0.1/24 dev slow",
        "ip link set slow txqueuelen 10000 up",
        "ip link set lo up",
        "tc qdisc add dev slow root tbf rate 8kbit burst 2000 limit 10000000",
    ):
        subprocess.run(command.split(), check=True)

    def release():
        # What the queue held is gone; from now on the device takes everything.
        subprocess.run("tc qdisc del dev slow root".split(), check=True)
        drain()

    def drain():
        taken = 0
        while True:
            try:
                os.read(tun, 70000)
                taken += 1
            except BlockingIOError:
                return taken
"""


def run(body: str) -> None:
    script = textwrap.dedent(SETUP) + textwrap.dedent(body)
    done = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.netns
@pytest.mark.skipif(not can_make_a_tun(), reason="needs a network namespace and /dev/net/tun")
class TestFullSendBuffer:
    def test_what_must_be_kept_waits_for_room_and_the_rest_is_dropped(self) -> None:
        run("""
            from wire._batch.udp import BatchedUdp

            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("10.9.0.1", 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
            sender = BatchedUdp(sock.fileno())
            for i in range(200):
                sender.queue(bytes(1000), "10.9.0.2", 5000)
            for i in range(20):
                sender.queue(bytes([i]) * 100, "10.9.0.2", 5000, keep=True)
            sender.flush()
            first = sender.counters()
            assert first["dropped_blocked"] > 0, first
            assert first["held"] == 20, first
            release()
            sender.flush()
            second = sender.counters()
            assert second["datagrams"] - first["datagrams"] == 20, (first, second)
            assert second["dropped_blocked"] == first["dropped_blocked"]
            assert drain() == 20
        """)

    def test_audio_survives_where_video_is_dropped_and_video_resumes_with_a_frame(self) -> None:
        run("""
            from sfu._dataplane.plane import Plane
            from tests.support.srtp_peer import AUDIO, Rtp, SrtpPeer, VideoSource, publish_video, pull_video

            plane = Plane(["10.9.0.1"], 0)
            plane.start()
            for name in os.listdir("/proc/self/fd"):
                path = f"/proc/self/fd/{name}"
                if os.path.lexists(path) and os.readlink(path).startswith("socket:"):
                    with socket.socket(fileno=os.dup(int(name))) as own:
                        if own.type == socket.SOCK_DGRAM and own.getsockname()[1] == plane.port:
                            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
            publisher = SrtpPeer(plane, host="10.9.0.1")
            transport = plane.add_transport()  # a subscriber behind the device that nobody reads
            plane.select_tuple(transport, (0, "10.9.0.2", 5000))
            plane.set_keys(transport, 7, bytes(28), bytes(28))

            class Behind:
                def __init__(self):
                    self.plane, self.transport = plane, transport

            forwarder = pull_video(Behind(), publish_video(publisher, mid="v"))
            section = {"mid": "a", "video": False, "extensions": {}}
            track = plane.add_track(publisher.transport, **section, codecs=AUDIO, ssrcs=[(9, 0)])
            audio = plane.add_forwarder(transport, **section, ssrc=8, rtx_ssrc=0, cname="")
            plane.set_source(audio, track, payload_types={111: 111}, rtx_payload_types={})
            source = VideoSource(publisher, 1111)
            publisher.send_train(source.frame(key=True, size=50, length=1000))
            publisher.wait(lambda: plane.forwarder_stats(forwarder)["packets"] == 50)  # a batch of its own
            cut = source.frame(size=10, length=1000)
            publisher.send_train(cut[:5])
            publisher.wait(lambda: plane.stats()["drop_send_blocked"] > 0)
            publisher.send_train(cut[5:])  # the rest of a frame that is cut already
            publisher.wait(lambda: plane.stats()["drop_blocked"] == 5)
            for i in range(10):
                publisher.send(Rtp(111, i, 960 * i, 9, b"opus"))
            publisher.wait(lambda: plane.stats()["send_held"] >= 10 and plane.stats()["drop_send_blocked"] > 0)
            busy = plane.stats()["wakeups"]
            time.sleep(0.2)
            assert plane.stats()["wakeups"] - busy < 250  # tried again every 2 ms at most
            sent = plane.stats()["datagrams_out"]
            release()
            publisher.wait(lambda: plane.stats()["datagrams_out"] >= sent + 10)
            assert plane.stats()["drop_send_error"] == 0
            before = plane.forwarder_stats(forwarder)["packets"]
            publisher.send_train(source.frame(size=10, length=1000))
            publisher.wait(lambda: plane.forwarder_stats(forwarder)["packets"] >= before + 10)
            plane.close()
            publisher.close()
        """)
