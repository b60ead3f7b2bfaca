"""coturn's load client against us: every transport, channels and indications, nothing lost."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.support.tools import needs_coturn
from tests.support.turn_sockets import PASSWORD, PEER_HOST, USER, serving

pytestmark = [
    needs_coturn,
    pytest.mark.slow,
]

CLIENTS, MESSAGES = 4, 50


async def uclient(port: int, *options: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "turnutils_uclient", "-p", str(port), "-m", str(CLIENTS), "-n", str(MESSAGES), "-z", "10", *options,
        "127.0.0.1", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    except TimeoutError:
        process.kill()
        output, _ = await process.communicate()
    return process.returncode or 0, output.decode(errors="replace")


def assert_nothing_lost(status: int, output: str) -> None:
    assert status == 0, output
    sent = re.search(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)", output.splitlines()[-6] if output else "")
    assert sent is not None, output
    assert sent[1] == sent[2] == str(CLIENTS * MESSAGES), output
    assert "Total lost packets 0 " in output, output


@pytest.mark.parametrize("mode", [(), ("-s",), ("-D",)], ids=["channels", "indications", "padded"])
async def test_nothing_is_lost_between_two_clients(mode: tuple[str, ...], tmp_path: Path) -> None:
    """Client to client through two relays of ours (-y), over all transports at once: a client mostly waits.

    The old client numbers channels up to 0x7FFF (C1), and over TLS takes one message per read (T6).
    """
    async with serving(tmp_path, rfc5766_channel_numbers=True, tls_record_per_message=True) as service:
        common = ["-u", USER, "-w", PASSWORD, "-y", "-c", *mode]
        for status, output in await asyncio.gather(
            uclient(service.port, *common),
            uclient(service.port, *common, "-t"),
            uclient(service.tls_port, *common, "-t", "-S"),
        ):
            assert_nothing_lost(status, output)


async def test_nothing_is_lost_over_tcp_relays(tmp_path: Path) -> None:
    """RFC 6062 (-T): one client calls the other's relayed address; to us over TCP and over TLS."""
    async with serving(tmp_path, tcp_relays=True, connections_max=256) as service:
        common = ["-u", USER, "-w", PASSWORD, "-T"]
        for status, output in await asyncio.gather(
            uclient(service.port, *common), uclient(service.tls_port, *common, "-S")
        ):
            assert_nothing_lost(status, output)


async def test_nothing_is_lost_to_a_peer_outside(tmp_path: Path) -> None:
    """Echoed by coturn's peer, with RTCP beside RTP: even ports and reservations (A14 to A16)."""
    peer = await asyncio.create_subprocess_exec(
        "turnutils_peer", "-L", PEER_HOST, "-p", "3999",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await asyncio.sleep(0.3)
        async with serving(tmp_path, rfc5766_channel_numbers=True) as service:
            status, output = await uclient(service.port, "-u", USER, "-w", PASSWORD, "-e", PEER_HOST, "-r", "3999")
            assert_nothing_lost(status, output)
    finally:
        peer.terminate()
        await peer.wait()


async def test_time_limited_credentials(tmp_path: Path) -> None:
    """E1, with the client's own derivation of the password (-W)."""
    async with serving(tmp_path, users={}, rest_secrets=("north",), rfc5766_channel_numbers=True) as service:
        status, output = await uclient(service.port, "-u", "carol", "-W", "north", "-y", "-c")
        assert_nothing_lost(status, output)


@pytest.mark.parametrize("credentials", [(USER, "wrong"), ("nobody", PASSWORD)])
async def test_wrong_credentials_get_no_allocation(credentials: tuple[str, str], tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        status, _ = await uclient(service.port, "-u", credentials[0], "-w", credentials[1], "-y", "-c")
        assert status != 0
        assert service.live_counts()["turn_allocations"] == 0


@pytest.mark.parametrize(
    "command",
    [("turnutils_stunclient",), ("turnutils_natdiscovery", "-m")],
    ids=["stunclient", "natdiscovery"],
)
async def test_s13_the_reflexive_address_is_found(command: tuple[str, ...]) -> None:
    """One address is all we have: RFC 5780's other address, which finds the kind of NAT, is not offered."""
    async with serving() as service:
        process = await asyncio.create_subprocess_exec(
            *command, "-p", str(service.port), "127.0.0.1",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            output, _ = await asyncio.wait_for(process.communicate(), 20)
        except TimeoutError:
            process.kill()
            output, _ = await process.communicate()
        assert re.search(r"reflexive addr: 127\.0\.0\.1:\d+", output.decode()), output
