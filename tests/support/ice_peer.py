"""The checks a full, controlling ICE agent sends, as bytes."""

from __future__ import annotations

import secrets

from sfu.ice import IceCredentials
from wire import stun
from wire.stun import Attr, MessageClass, Method


def check(
    credentials: IceCredentials,
    *,
    key: str | None = None,
    username: str | None = None,
    nominate: bool = False,
    controlled: bool = False,
    priority: bool = True,
    integrity: bool = True,
    more: tuple[tuple[int, bytes], ...] = (),
    transaction_id: bytes | None = None,
    method: int = Method.BINDING,
    message_class: int = MessageClass.REQUEST,
) -> bytes:
    """A Binding request towards the agent that announced `credentials`."""
    role = Attr.ICE_CONTROLLED if controlled else Attr.ICE_CONTROLLING
    attributes: list[tuple[int, bytes]] = [(role, stun.uint64(7))]
    if username != "":
        attributes.append((Attr.USERNAME, (username or f"{credentials.ufrag}:peer").encode()))
    if priority:
        attributes.append((Attr.PRIORITY, stun.uint32(1)))
    if nominate:
        attributes.append((Attr.USE_CANDIDATE, b""))
    attributes += more
    return stun.serialize(
        method,
        message_class,
        transaction_id or secrets.token_bytes(12),
        attributes,
        key=(key or credentials.pwd).encode() if integrity else None,
        with_fingerprint=True,
    )
