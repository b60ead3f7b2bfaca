"""The decision for one packet: drop it and count why, relay it, answer it, or leave it to Python (RFC 8656 §11, §12).

Called with the shard locked, by its thread for each packet. Allocates nothing. Pointers in an `Outcome` are into the
packet and the tables: use them before the next command. `turn._reference` is the same in plain Python.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from turn._relay.packet cimport (
    BINDING_REQUEST, SEND_INDICATION, STUN_HEADER, Stun, be16, parse_stun, put16, put32, read_xor_address,
    write_binding_success, write_data_indication,
)
from turn._relay.table cimport (
    PAYLOAD_MAX, DROP, TO_PEER, TO_CLIENT, TO_CONTROL, UNKNOWN_PROTOCOL, MALFORMED, IGNORED, NO_ALLOCATION,
    NO_PERMISSION, UNBOUND_CHANNEL, UNKNOWN_ATTRIBUTE, DENIED_PORT, TOO_BIG, RATE_LIMITED, BINDING_LIMITED,
    REQUEST_LIMITED, REASONS, STREAM, Reason, Channel, Client, Outcome, Permission, Relay, Shard, take, has_port,
    source_may, client_link, find_permission,
)
from wire._batch.udp cimport Address, same_address


cdef inline Reason may_talk(Shard *s, Relay *relay, const Address *peer, double now) noexcept nogil:
    """REASONS when it may; the permission and the port, in either direction (P2, C8, X8, X9)."""
    cdef Permission *permission = find_permission(relay, peer)
    cdef uint16_t port = be16(peer.raw + 2)
    if permission == NULL or now >= permission.expires_at:
        return NO_PERMISSION
    if permission.restricted != NULL:
        return REASONS if has_port(permission.restricted.ports, port) else DENIED_PORT
    return DENIED_PORT if has_port(s.shared.denied_ports, port) else REASONS


cdef inline void drop(Shard *s, Outcome *o, Reason reason) noexcept nogil:
    o.kind = DROP
    o.reason = reason
    s.counters[<int>reason] += 1


cdef inline void to_peer(Shard *s, Relay *relay, const Address *peer, Outcome *o, double now) noexcept nogil:
    cdef Reason reason = may_talk(s, relay, peer, now)
    if reason != REASONS:
        drop(s, o, reason)
    elif o.payload_size > PAYLOAD_MAX:
        drop(s, o, TOO_BIG)
    elif not (
        take(&relay.packets_up, 1, now)
        and take(&relay.up, o.payload_size, now)
        and take(&relay.user.up, o.payload_size, now)
        and take(&s.shared.total_up, o.payload_size, now)
    ):
        drop(s, o, RATE_LIMITED)
    else:
        o.kind = TO_PEER
        o.relay = relay
        o.peer = peer[0]
        relay.usage[0] += o.payload_size
        relay.usage[1] += 1


cdef inline void decide_channel_data(Shard *s, uint32_t listener, const Address *source, const uint8_t *data, int size, double now, Outcome *o) noexcept nogil:
    cdef uint16_t number = be16(data)
    cdef int length = be16(data + 2), i, k
    cdef Client *client
    cdef Relay *relay
    if number > s.shared.channel_max or length > size - 4:
        drop(s, o, MALFORMED)
        return
    client = client_link(s, listener, source)[0]
    if client == NULL:
        drop(s, o, NO_ALLOCATION)
        return
    for k in range(2):
        relay = client.relays[k]
        if relay == NULL:
            continue
        for i in range(relay.channel_count):
            if relay.channels[i].number == number and now < relay.channels[i].expires_at:
                o.payload = data + 4
                o.payload_size = length
                to_peer(s, relay, &relay.channels[i].peer, o, now)
                return
    drop(s, o, UNBOUND_CHANNEL)


cdef inline void decide_send(Shard *s, uint32_t listener, const Address *source, const Stun *message, double now, Outcome *o) noexcept nogil:
    cdef Address peer
    cdef Client *client
    cdef int k
    if (
        message.data == NULL
        or message.peer == NULL
        or not read_xor_address(message.peer, message.peer_size, message.transaction_id, &peer)
    ):
        drop(s, o, MALFORMED)
        return
    if message.unknown_required:
        drop(s, o, UNKNOWN_ATTRIBUTE)
        return
    client = client_link(s, listener, source)[0]
    if client == NULL:
        drop(s, o, NO_ALLOCATION)
        return
    for k in range(2):
        if client.relays[k] != NULL and client.relays[k].local.length == peer.length:
            o.payload = message.data
            o.payload_size = message.data_size
            # H2: meaningless unless both sides are IPv4
            o.dont_fragment = message.dont_fragment and peer.length == 16 and source.length != 28
            to_peer(s, client.relays[k], &peer, o, now)
            return
    drop(s, o, NO_PERMISSION)


cdef inline void decide_client(Shard *s, uint32_t listener, const Address *source, const uint8_t *data, int size, double now, Outcome *o) noexcept nogil:
    """What becomes of one datagram, or one message of a stream, from a client."""
    cdef Stun message
    cdef bint limited = listener != STREAM
    o.padding = 0
    o.payload_size = 0
    o.dont_fragment = False
    if size < 4 or (3 < data[0] < 0x40) or data[0] > 0x7F:
        drop(s, o, UNKNOWN_PROTOCOL)
        return
    if data[0] >= 0x40:
        decide_channel_data(s, listener, source, data, size, now, o)
        return
    if not parse_stun(data, size, &message):
        drop(s, o, MALFORMED)
        return
    if message.type == SEND_INDICATION:
        decide_send(s, listener, source, &message, now, o)
    elif message.type & 0x0110:
        drop(s, o, IGNORED)
    elif message.type == BINDING_REQUEST and limited and not message.unknown_required:
        if not source_may(s.bindings, s.seed, source, now):
            drop(s, o, BINDING_LIMITED)
            return
        o.kind = TO_CLIENT
        o.relay = NULL
        o.head_size = write_binding_success(o.head, &message, source)
    elif limited and not source_may(s.requests, s.seed, source, now):
        drop(s, o, REQUEST_LIMITED)
    else:
        o.kind = TO_CONTROL
        o.payload = data
        o.payload_size = size


cdef inline void decide_peer(Shard *s, Relay *relay, const Address *source, const uint8_t *payload, int size, double now, Outcome *o) noexcept nogil:
    """What becomes of one datagram that arrived at a relay."""
    cdef Reason reason
    cdef uint8_t transaction_id[12]
    cdef Channel *channel = NULL
    cdef bint streaming
    cdef int i, padded = (size + 3) & ~3
    if relay.client == NULL:
        drop(s, o, NO_ALLOCATION)
        return
    reason = may_talk(s, relay, source, now)
    if reason != REASONS:
        drop(s, o, reason)
        return
    if not (
        take(&relay.packets_down, 1, now)
        and take(&relay.down, size, now)
        and take(&relay.user.down, size, now)
        and take(&s.shared.total_down, size, now)
    ):
        drop(s, o, RATE_LIMITED)
        return
    streaming = relay.client.listener == STREAM
    for i in range(relay.channel_count):
        if now < relay.channels[i].expires_at and same_address(&relay.channels[i].peer, source):
            channel = &relay.channels[i]
            break
    if channel != NULL:
        put16(o.head, channel.number)
        put16(o.head + 2, size)
        o.head_size = 4
        o.padding = padded - size if streaming else 0
    else:
        s.indication_count += 1
        memcpy(transaction_id, &s.indication_prefix, 8)
        put32(transaction_id + 8, s.indication_count)
        o.head_size = write_data_indication(o.head, transaction_id, source, size)
        o.padding = padded - size
    if o.head_size + size + o.padding > (PAYLOAD_MAX if streaming == False else 65535 + STUN_HEADER):
        drop(s, o, TOO_BIG)
        return
    o.kind = TO_CLIENT
    o.relay = relay
    o.payload = payload
    o.payload_size = size
    relay.usage[2] += size
    relay.usage[3] += 1
