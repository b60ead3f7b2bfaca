"""The relay tables behind a Python class: the commands of the control plane, and the decisions for tests.

`Plane` adds sockets and threads. Every method holds the GIL and takes the lock of the shard it changes.
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize

from turn._relay.decide cimport decide_client, decide_peer
from turn._relay.stream cimport FOREIGN, Stream, next_message, put_back, stream_free, waiting
from wire._batch.udp cimport format_address, parse_address

REASON_NAMES = (
    "unknown_protocol", "malformed", "ignored", "no_allocation", "no_permission", "unbound_channel",
    "unknown_attribute", "denied_port", "too_big", "rate_limited", "binding_limited", "request_limited",
    "truncated", "client_queue_full", "control_queue_full",
)


cdef class RelayTable:
    def __cinit__(
        self, *, int relays_max, int workers=1, int channel_max=0x4FFF, double allocation_bps=0, double user_bps=0,
        double total_bps=0, double allocation_pps=0, double bindings_per_s=0, double requests_per_s=0, **_,
    ):
        cdef int i
        cdef uint64_t seed = int.from_bytes(os.urandom(8), "big")
        cdef uint64_t prefix
        if not 0 < relays_max < 1 << 24:
            raise ValueError("relays_max")
        memset(&self.shared, 0, sizeof(Shared))
        self.shared.channel_max = channel_max
        self.shared.allocation_rate = allocation_bps / 8
        self.shared.allocation_packet_rate = allocation_pps
        self.shared.user_rate = user_bps / 8
        fill_bytes(&self.shared.total_up, total_bps / 8)
        fill_bytes(&self.shared.total_down, total_bps / 8)
        set_port(self.shared.denied_ports, 0, True)
        self.capacity = relays_max
        self.relays = <Relay **>calloc(relays_max, sizeof(Relay *))
        self.generations = <uint32_t *>calloc(relays_max, sizeof(uint32_t))
        self.free_slots = <int *>calloc(relays_max, sizeof(int))
        self.workers = <Worker *>calloc(workers, sizeof(Worker))
        if self.relays == NULL or self.generations == NULL or self.free_slots == NULL or self.workers == NULL:
            raise MemoryError
        for i in range(relays_max):
            self.free_slots[i] = relays_max - 1 - i
        self.free_count = relays_max
        for i in range(workers):
            prefix = int.from_bytes(os.urandom(8), "big")
            if not shard_init(
                &self.workers[i].shard, &self.shared, relays_max, seed, prefix, bindings_per_s, requests_per_s
            ):
                raise MemoryError
            pthread_mutex_init(&self.workers[i].lock, NULL)
            self.worker_count = i + 1

    def __dealloc__(self):
        cdef int i
        if self.relays != NULL:
            for i in range(self.capacity):
                if self.relays[i] != NULL:
                    if self.relays[i].client != NULL:
                        detach(&self.workers[self.relays[i].shard].shard, self.relays[i])
                    free_relay(self.relays[i])
        for i in range(self.worker_count):
            shard_destroy(&self.workers[i].shard)
            pthread_mutex_destroy(&self.workers[i].lock)
        shared_destroy(&self.shared)
        free(self.relays)
        free(self.generations)
        free(self.free_slots)
        free(self.workers)

    # Relays by handle: slot in the low 24 bits, generation above.

    cdef Relay *find(self, uint64_t handle) except NULL:
        cdef uint64_t slot = handle & 0xFFFFFF
        if slot >= <uint64_t>self.capacity or self.relays[slot] == NULL or self.relays[slot].handle != handle:
            raise KeyError("no such relay")
        return self.relays[slot]

    cdef Relay *new_relay(self, const Address *local) except NULL:
        cdef int slot
        cdef Relay *relay
        if self.free_count == 0:
            raise MemoryError("all relay slots are taken")
        relay = <Relay *>calloc(1, sizeof(Relay))
        if relay == NULL:
            raise MemoryError
        self.free_count -= 1
        slot = self.free_slots[self.free_count]
        relay.local = local[0]
        relay.shard = -1
        relay.socket.fd = -1
        relay.handle = (<uint64_t>self.generations[slot] << 24) | <uint64_t>slot
        self.relays[slot] = relay
        return relay

    cdef void lock(self, int worker) noexcept nogil:
        atomic_add(&self.workers[worker].waiting, 1)
        pthread_mutex_lock(&self.workers[worker].lock)
        atomic_add(&self.workers[worker].waiting, -1)

    cdef void unlock(self, int worker) noexcept nogil:
        pthread_mutex_unlock(&self.workers[worker].lock)

    cdef int lock_of(self, Relay *relay) noexcept nogil:
        """The relay's shard, locked; -1 when no thread knows the relay yet."""
        if relay.shard >= 0:
            self.lock(relay.shard)
        return relay.shard

    cdef void unlock_of(self, int worker) noexcept nogil:
        if worker >= 0:
            self.unlock(worker)

    def add_relay(self, str host, int port):
        cdef Address local
        parse_address(&local, host, port)
        return self.new_relay(&local).handle

    def close_relay(self, uint64_t handle):
        cdef Relay *relay = self.find(handle)
        cdef uint64_t slot = handle & 0xFFFFFF
        cdef int worker
        with nogil:
            worker = self.lock_of(relay)
            if relay.client != NULL:
                detach(&self.workers[worker].shard, relay)
            self.generations[slot] += 1
            self.relays[slot] = NULL
            self.unlock_of(worker)
        usage = (relay.usage[0], relay.usage[1], relay.usage[2], relay.usage[3])
        free_relay(relay)
        self.free_slots[self.free_count] = <int>slot
        self.free_count += 1
        return usage

    def usage(self, uint64_t handle):
        cdef Relay *relay = self.find(handle)
        cdef int worker
        with nogil:
            worker = self.lock_of(relay)
        usage = (relay.usage[0], relay.usage[1], relay.usage[2], relay.usage[3])
        with nogil:
            self.unlock_of(worker)
        return usage

    def start_relay(self, uint64_t handle, int worker, uint32_t listener, str host, int port, uint64_t user):
        cdef Relay *relay = self.find(handle)
        cdef Address client
        cdef bint done
        parse_address(&client, host, port)
        if relay.client != NULL or not 0 <= worker < self.worker_count:
            raise ValueError("started already, or no such worker")
        with nogil:
            self.lock(worker)
            done = attach(&self.workers[worker].shard, relay, listener, &client, user)
            if done:
                relay.shard = worker
            self.unlock(worker)
        if not done:
            raise MemoryError

    def permit(self, uint64_t handle, str host, double expires_at):
        cdef Relay *relay = self.find(handle)
        cdef Address peer
        cdef bint done
        cdef int worker
        parse_address(&peer, host, 0)
        with nogil:
            worker = self.lock_of(relay)
            done = table_permit(&self.shared, relay, &peer, expires_at)
            self.unlock_of(worker)
        if not done:
            raise MemoryError

    def forbid(self, uint64_t handle, str host):
        cdef Relay *relay = self.find(handle)
        cdef Address peer
        cdef int worker
        parse_address(&peer, host, 0)
        with nogil:
            worker = self.lock_of(relay)
            table_forbid(relay, &peer)
            self.unlock_of(worker)

    def bind_channel(self, uint64_t handle, uint16_t number, str host, int port, double expires_at):
        cdef Relay *relay = self.find(handle)
        cdef Address peer
        cdef bint done
        cdef int worker
        parse_address(&peer, host, port)
        with nogil:
            worker = self.lock_of(relay)
            done = table_bind(relay, number, &peer, expires_at)
            self.unlock_of(worker)
        if not done:
            raise MemoryError

    def deny_peer_ports(self, ports):
        cdef int port
        for port in range(65536):
            set_port(self.shared.denied_ports, port, port in ports)

    def restrict_address(self, str host):
        cdef Address address
        cdef RestrictedAddress *restricted
        cdef Relay *relay
        cdef Permission *permission
        cdef int i, worker
        parse_address(&address, host, 0)
        restricted = table_restrict(&self.shared, &address)
        if restricted == NULL:
            raise MemoryError
        for i in range(self.capacity):
            relay = self.relays[i]
            if relay != NULL:
                worker = self.lock_of(relay)
                permission = find_permission(relay, &address)
                if permission != NULL:
                    permission.restricted = restricted
                self.unlock_of(worker)

    def set_port(self, str host, int port, bint allowed):
        cdef Address address
        cdef RestrictedAddress *restricted
        parse_address(&address, host, port)
        restricted = find_restricted(&self.shared, ip_of(&address), address.length)
        if restricted != NULL:
            set_port(restricted.ports, port, allowed)

    def counters(self):
        cdef int worker, reason
        cdef uint64_t total
        found = {}
        for reason in range(<int>REASONS):
            total = 0
            for worker in range(self.worker_count):
                total += self.workers[worker].shard.counters[reason]
            found[REASON_NAMES[reason]] = total
        return found

    def live_counts(self):
        cdef int users = 0, clients = 0, worker
        cdef uint32_t i
        cdef Client *client
        cdef User *user = self.shared.users
        while user != NULL:
            users += 1
            user = user.next
        for worker in range(self.worker_count):
            self.lock(worker)
            for i in range(self.workers[worker].shard.bucket_mask + 1):
                client = self.workers[worker].shard.buckets[i]
                while client != NULL:
                    clients += 1
                    client = client.next
            self.unlock(worker)
        return {"relays": self.capacity - self.free_count, "clients": clients, "users": users}

    # Decisions, for tests: the threads call the same functions.

    def from_client(self, uint32_t listener, str host, int port, bytes data, double now):
        cdef Outcome o
        cdef Address source
        parse_address(&source, host, port)
        self.lock(0)
        decide_client(
            &self.workers[0].shard, listener, &source, <const uint8_t *>PyBytes_AS_STRING(data), <int>len(data), now, &o
        )
        self.unlock(0)
        return describe(&o)

    def from_peer(self, uint64_t handle, str host, int port, bytes payload, double now):
        cdef Outcome o
        cdef Address source
        cdef Relay *relay = self.find(handle)
        parse_address(&source, host, port)
        o.dont_fragment = False
        self.lock(0)
        decide_peer(
            &self.workers[0].shard, relay, &source, <const uint8_t *>PyBytes_AS_STRING(payload), <int>len(payload), now, &o
        )
        self.unlock(0)
        return describe(&o)


    def cut(self, pieces):
        """(whole messages of a stream that comes in these pieces, whether foreign bytes broke it, what is left)."""
        cdef Stream *stream = <Stream *>calloc(1, sizeof(Stream))
        cdef const uint8_t *message = NULL
        cdef bytes piece
        cdef int size, at
        if stream == NULL:
            raise MemoryError
        messages = []
        broken = False
        for piece in pieces:
            at = 0
            while not broken:
                size = next_message(stream, <const uint8_t *>PyBytes_AS_STRING(piece), <int>len(piece), &at, &message, 0)
                if size == 0:
                    break
                broken = size == FOREIGN
                if broken:
                    put_back(stream, NULL, 0, <const uint8_t *>PyBytes_AS_STRING(piece) + at, <int>len(piece) - at)
                else:
                    messages.append(PyBytes_FromStringAndSize(<const char *>message, size))
        left = PyBytes_FromStringAndSize(<const char *>stream.rest.data + stream.rest.at, waiting(&stream.rest))
        stream_free(stream)
        return messages, broken, left


cdef tuple describe(Outcome *o):
    if o.kind == DROP:
        return ("drop", REASON_NAMES[o.reason])
    payload = PyBytes_FromStringAndSize(<const char *>o.payload, o.payload_size) if o.payload_size else b""
    if o.kind == TO_CONTROL:
        return ("control", payload)
    if o.kind == TO_PEER:
        return ("peer", o.relay.handle, *format_address(&o.peer), payload, bool(o.dont_fragment))
    return ("client", PyBytes_FromStringAndSize(<const char *>o.head, o.head_size) + payload + bytes(o.padding))
