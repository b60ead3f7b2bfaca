"""The same server on uvloop, which the program runs on."""

from __future__ import annotations

from pathlib import Path

import uvloop

from tests.support.turn_sockets import Client, Peer, serving


def test_every_transport_relays_on_uvloop(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as service:
            for transport in ("udp", "tcp", "tls", "tls"):
                async with Client.connected(service, transport) as client:
                    peer = await Peer.open()
                    relay = await client.allocate()
                    assert await client.bind(0x4000, peer.address) == 0
                    for payload in (b"", b"hello", bytes(9000)):
                        client.send_channel(0x4000, payload)
                        assert await peer.receive() == (payload, relay)
                        peer.send(payload, relay)
                        assert await client.receive() == (0x4000, payload)
                    peer.close()

    uvloop.run(scenario())
