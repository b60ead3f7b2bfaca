"""A TURN and STUN server (RFC 8656, RFC 8489) with the HTTP API that hands out its credentials.

`TurnService` is the whole of it for others: `start`, `close`, `stats`, `ice_servers`. Inside, Python decides and
Cython relays: `TurnServer` answers requests and tells a `RelayPlane` who may send what to whom; the plane's threads
repeat that decision per packet, without the GIL.

Clients by UDP, TCP and TLS; relays by UDP and, where they are switched on, TCP (RFC 6062), IPv4 and IPv6. Non-goals,
each refused with its error code: mobility (RFC 8016, 405), third-party tokens (RFC 7635), DTLS towards clients, ICMP
relaying.

Where to look:

| to change | open |
|---|---|
| the way of a request: who asks, came it before, which answer | `server.py`, `transactions.py` |
| what a request does, in which order, with which code | `allocations.py`; permissions and channels: `admission.py` |
| who may ask: challenges, nonces, credentials | `auth.py`, `credentials.py`, `revocations.py`, `lookup.py` |
| which peers may be reached | `policy.py`; this machine's addresses: `interfaces.py` |
| peers over TCP | `tcp_relays.py` and `connections.py` decide, `peer_endpoint.py` carries |
| ports, reservations | `relaypool.py`, `relayports.py` |
| lifetimes and tables of one allocation | `allocation.py`, `permission.py`, `channel.py`; timers: `expiries.py` |
| what happens per packet | `_relay/decide.pxd` (and `_reference.py`, its plain-Python twin), on `_relay/table.pxd` |
| threads, batches, peers in this process, streams' data | `_relay/engine.pxd`, commands in `_relay/plane.pyx` |
| TCP, TLS, their timeouts | `stream_endpoint.py`, `framing.py`, `tls.py`; `stream.pxd`, `tls.pxd` in `_relay` |
| limits | `settings.py` |
| the HTTP API | `routes.py` |
"""
