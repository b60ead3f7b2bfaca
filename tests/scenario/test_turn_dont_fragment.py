"""DONT-FRAGMENT on a path with a small MTU (D3), in a network namespace of its own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

NAMESPACE = "turn-mtu"


async def scenario() -> None:
    """Runs inside the namespace, whose loopback has an MTU of 1500."""
    from tests.support.turn_sockets import Client, Peer, eventually, serving
    from wire import stun
    from wire.stun import Attr, MessageClass, Method

    async with serving() as service, Client.connected(service) as client:
        peer = await Peer.open()
        relay = await client.allocate()
        await client.permit(peer.address)
        for size, dont_fragment, passes in ((2000, True, False), (1400, True, True), (2000, False, True)):
            transaction_id = os.urandom(12)
            attributes = [
                (int(Attr.XOR_PEER_ADDRESS), stun.xor_address(peer.address, transaction_id)),
                (int(Attr.DATA), bytes(size)),
            ]
            if dont_fragment:
                attributes.append((int(Attr.DONT_FRAGMENT), b""))
            client.send(stun.serialize(Method.SEND, MessageClass.INDICATION, transaction_id, attributes))
            if passes:
                assert await peer.receive() == (bytes(size), relay)
            else:
                await eventually(lambda: service.stats().counters["plane_too_big"] == 1)
                assert peer.waiting == 0
        peer.close()


@pytest.mark.netns
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_d3_too_big_for_the_path_is_not_sent_and_counted_and_without_the_flag_it_is_fragmented() -> None:
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        inside = ["ip", "netns", "exec", NAMESPACE]
        subprocess.run([*inside, "ip", "link", "set", "lo", "up", "mtu", "1500"], check=True)
        result = subprocess.run(
            [*inside, sys.executable, "-m", "tests.scenario.test_turn_dont_fragment"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    finally:
        subprocess.run(["ip", "netns", "delete", NAMESPACE], check=True)


if __name__ == "__main__":
    asyncio.run(scenario())
