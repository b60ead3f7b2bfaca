"""What the logs say, and what they must never say (X22, I7)."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from tests.support.turn_sockets import PASSWORD, USER, Client, Peer, code, serving
from turn.credentials import derive_keys
from wire import stun
from wire.stun import Attr, Method

SECRETS = {
    "rest_secrets": ("north-north-north",),
    "credential_secret": "sealing-sealing-sealing",
    "keys": {"k": "token-k"},
}


async def test_a_whole_session_at_debug_level_tells_no_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(tmp_path, **SECRETS) as service:
        entry = service.ice_servers(60, key_id="k", custom_identifier="someone")[-1]
        peer = await Peer.open()
        for transport in ("udp", "tcp", "tls"):
            async with Client.connected(service, transport) as client:
                await client.allocate()
                await client.bind(0x4000, peer.address)
                client.send_channel(0x4000, b"payload-payload")
                await peer.receive()
            wrong = Client(transport, USER, "guess-guess")
            await wrong.connect(service)
            answer = await wrong.request(Method.ALLOCATE, (Attr.REQUESTED_TRANSPORT, stun.uint32(17 << 24)))
            assert code(answer) == 401
            await wrong.close()
        service.revoke("k", str(entry.username))
        peer.close()
    keys = derive_keys(USER, "torpor", PASSWORD)
    secrets = [PASSWORD, "north-north", "sealing-", "token-k", "payload-", "guess-", str(entry.credential)]
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "allocated user=alice" in said
    assert not [secret for secret in [*secrets, keys.md5.hex(), keys.sha256.hex(), repr(keys.md5)] if secret in said]


async def test_the_audit_line_stays_one_line_whatever_the_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "turn.audit")
    name = "evil – %s {0}"
    async with serving(users={name: PASSWORD}) as service, Client.connected(service, "tcp", username=name) as client:
        await client.allocate()
        await client.request(Method.REFRESH, (Attr.LIFETIME, bytes(4)))
    lines = [record.getMessage() for record in caplog.records if record.name == "turn.audit"]
    assert len(lines) == 2
    assert all(r"user=evil \u2013 %s {0} client=tcp 127.0.0.1:" in line for line in lines)
    assert "reason=deleted" in lines[1]


async def test_strangers_cannot_make_us_write_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving() as service, Client.connected(service, "udp") as client:
        caplog.clear()
        for n in range(300):
            client.send(bytes([n & 0xFF]) * (n + 1))
        await client.request(Method.BINDING)
        await asyncio.sleep(0.05)
        assert not caplog.records
        assert service.stats().counters["plane_unknown_protocol"] > 100
