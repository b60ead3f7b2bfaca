"""Who may send what to whom: the tables of one shard, and how commands change them (RFC 8656 §9, §12).

A shard is what one relay thread owns. Its tables are changed and read under the shard's lock (the threads hold it for
one round). Shared by all shards, without a lock: the port sets, written by one thread byte by byte, and the buckets
of users and of the whole, where an update lost between two threads costs accuracy and nothing else.

Memory: clients, relays, permissions and channels are malloc'ed by commands and freed by commands. `decide.pxd` has what
the tables are for.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes) noexcept
    int pthread_mutex_destroy(pthread_mutex_t *mutex) noexcept
    int pthread_mutex_lock(pthread_mutex_t *mutex) noexcept
    int pthread_mutex_unlock(pthread_mutex_t *mutex) noexcept

cdef extern from *:
    """
    #define TURN_ADD(p, n) __atomic_add_fetch((p), (n), __ATOMIC_SEQ_CST)
    #define TURN_LOAD(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    """
    int atomic_add "TURN_ADD"(int *p, int n) noexcept nogil
    int atomic_load "TURN_LOAD"(int *p) noexcept nogil

from turn._relay.packet cimport REPLY_MAX, be16, put16
from turn._relay.stream cimport Stream, stream_free
from wire._batch.udp cimport AF_INET, Address, Socket, same_address

cdef enum:
    PAYLOAD_MAX = 65507         # a UDP datagram over IPv4
    SOURCE_SLOTS = 4096
    PORT_SET_BYTES = 8192

cdef enum Kind:
    DROP = 0
    TO_PEER = 1
    TO_CLIENT = 2
    TO_CONTROL = 3

cdef enum Reason:
    UNKNOWN_PROTOCOL = 0
    MALFORMED = 1
    IGNORED = 2
    NO_ALLOCATION = 3
    NO_PERMISSION = 4
    UNBOUND_CHANNEL = 5
    UNKNOWN_ATTRIBUTE = 6
    DENIED_PORT = 7
    TOO_BIG = 8
    RATE_LIMITED = 9
    BINDING_LIMITED = 10
    REQUEST_LIMITED = 11
    TRUNCATED = 12              # the three below are counted by the plane
    CLIENT_QUEUE_FULL = 13
    CONTROL_QUEUE_FULL = 14
    REASONS = 15

cdef struct Bucket:
    double rate                 # bytes or packets a second, 0: no limit
    double burst
    double tokens
    double updated_at

cdef struct User:               # allocations of one identity share it (X16)
    Bucket up
    Bucket down
    int references
    uint64_t id
    User *next

cdef struct RestrictedAddress:
    uint8_t ip[16]
    uint32_t length             # as in Address: 16 or 28
    uint8_t *ports              # bit set, allowed
    RestrictedAddress *next

cdef struct Permission:
    uint8_t ip[16]
    double expires_at
    RestrictedAddress *restricted

cdef struct Channel:
    Address peer
    double expires_at
    uint16_t number

cdef struct Relay:
    Socket socket
    Address local
    Client *client
    User *user
    Permission *permissions
    Channel *channels
    int permission_count
    int permission_capacity
    int channel_count
    int channel_capacity
    Bucket up
    Bucket down
    Bucket packets_up           # these two count packets
    Bucket packets_down
    uint64_t usage[4]           # bytes, packets from the client; bytes, packets to it
    uint64_t handle
    int shard                   # -1: not started
    Relay *next                 # with the same hash of `local`, in the shard
    Socket near                 # towards another plane of this process, in memory; unused without one

cdef struct Client:
    Address address
    uint32_t listener           # STREAM: `address` holds the connection's number
    Relay *relays[2]
    Client *next
    Stream *stream              # of STREAM, else NULL

cdef enum:
    STREAM = 0x7FFFFFFF

cdef struct Shared:             # by all shards
    uint8_t denied_ports[PORT_SET_BYTES]
    RestrictedAddress *restricted
    User *users
    Bucket total_up
    Bucket total_down
    double allocation_rate
    double allocation_packet_rate
    double user_rate
    uint16_t channel_max

cdef struct Shard:
    Shared *shared
    Client **buckets
    Relay **relays              # started ones by local address, as many chains
    uint32_t bucket_mask
    uint64_t seed
    uint64_t indication_prefix  # transaction ids of Data indications: prefix, counter
    uint32_t indication_count
    Bucket *bindings            # SOURCE_SLOTS each
    Bucket *requests
    Stream *dirty               # with something for Python
    Stream *ready               # with something for their clients; empty between two rounds
    uint64_t counters[REASONS]

cdef struct Outcome:
    Kind kind
    Reason reason
    Relay *relay
    Address peer                # TO_PEER
    bint dont_fragment
    uint8_t head[REPLY_MAX]     # TO_CLIENT: what goes before the payload
    int head_size
    const uint8_t *payload
    int payload_size
    int padding


cdef inline bint take(Bucket *b, double count, double now) noexcept nogil:
    if b.rate <= 0:
        return True
    if now > b.updated_at:
        b.tokens = min(b.burst, b.tokens + (now - b.updated_at) * b.rate)
    b.updated_at = now
    if b.tokens < count:
        return False
    b.tokens -= count
    return True


cdef inline void fill(Bucket *b, double rate, double burst) noexcept nogil:
    b.rate = rate
    b.burst = burst
    b.tokens = burst
    b.updated_at = 0


cdef inline void fill_bytes(Bucket *b, double rate) noexcept nogil:
    fill(b, rate, max(rate / 10, 65536.0))


cdef inline void fill_packets(Bucket *b, double rate) noexcept nogil:
    fill(b, rate, max(rate / 10, 64.0))


cdef inline bint has_port(const uint8_t *ports, uint16_t port) noexcept nogil:
    return ports[port >> 3] >> (port & 7) & 1


cdef inline void set_port(uint8_t *ports, uint16_t port, bint on) noexcept nogil:
    if on:
        ports[port >> 3] |= 1 << (port & 7)
    else:
        ports[port >> 3] &= ~(1 << (port & 7))


cdef inline const uint8_t *ip_of(const Address *a) noexcept nogil:
    return &a.raw[4 if a.length == 16 else 8]


cdef inline int ip_size(const Address *a) noexcept nogil:
    return 4 if a.length == 16 else 16


cdef inline uint64_t mix(uint64_t h) noexcept nogil:
    h ^= h >> 33
    h *= <uint64_t>0xFF51AFD7ED558CCD
    h ^= h >> 33
    h *= <uint64_t>0xC4CEB9FE1A85EC53
    return h ^ (h >> 33)


cdef inline uint64_t hash_bytes(const uint8_t *p, int size, uint64_t seed) noexcept nogil:
    """Keyed, so that nobody chooses who shares a slot with whom."""
    cdef uint64_t h = seed, word
    cdef int i
    for i in range(0, size, 8):
        word = 0
        memcpy(&word, p + i, min(8, size - i))
        h = mix(h ^ word)
    return h


cdef inline bint source_may(Bucket *slots, uint64_t seed, const Address *source, double now) noexcept nogil:
    """One bucket per IPv4 address or IPv6 /64 (X11, X12, X19)."""
    cdef int size = 4 if source.length == 16 else 8
    return take(&slots[hash_bytes(ip_of(source), size, seed) % SOURCE_SLOTS], 1, now)


cdef inline Client **client_link(Shard *s, uint32_t listener, const Address *address) noexcept nogil:
    """Where the client's pointer is, or would be, in its chain."""
    cdef Client **link = &s.buckets[hash_bytes(address.raw, address.length, s.seed ^ listener) & s.bucket_mask]
    while link[0] != NULL and (link[0].listener != listener or not same_address(&link[0].address, address)):
        link = &link[0].next
    return link


cdef inline Relay **relay_chain(Shard *s, const Address *local) noexcept nogil:
    return &s.relays[hash_bytes(local.raw, local.length, s.seed) & s.bucket_mask]


cdef inline Relay *relay_at(Shard *s, const Address *local) noexcept nogil:
    """The started relay at this address, or NULL."""
    cdef Relay *relay = relay_chain(s, local)[0]
    while relay != NULL and not same_address(&relay.local, local):
        relay = relay.next
    return relay


cdef inline RestrictedAddress *find_restricted(Shared *shared, const uint8_t *ip, uint32_t length) noexcept nogil:
    cdef RestrictedAddress *r = shared.restricted
    while r != NULL and (r.length != length or memcmp(r.ip, ip, 4 if length == 16 else 16) != 0):
        r = r.next
    return r


cdef inline Permission *find_permission(Relay *relay, const Address *peer) noexcept nogil:
    cdef int i, size = ip_size(peer)
    cdef const uint8_t *ip = ip_of(peer)
    if peer.length != relay.local.length:
        return NULL
    for i in range(relay.permission_count):
        if memcmp(relay.permissions[i].ip, ip, size) == 0:
            return &relay.permissions[i]
    return NULL


# Commands. Each returns False when memory is short, having changed nothing.

cdef inline bint table_permit(Shared *shared, Relay *relay, const Address *peer, double expires_at) noexcept nogil:
    cdef Permission *p = find_permission(relay, peer)
    cdef void *grown
    cdef int capacity
    if peer.length != relay.local.length:
        return True
    if p == NULL:
        if relay.permission_count == relay.permission_capacity:
            # A permission is granted for 600 s at most: what ends before this has ended already.
            drop_expired_permissions(relay, expires_at - 600)
        if relay.permission_count == relay.permission_capacity:
            capacity = max(2, relay.permission_capacity * 2)
            grown = realloc(relay.permissions, capacity * sizeof(Permission))
            if grown == NULL:
                return False
            relay.permissions = <Permission *>grown
            relay.permission_capacity = capacity
        p = &relay.permissions[relay.permission_count]
        relay.permission_count += 1
        memset(p, 0, sizeof(Permission))
        memcpy(p.ip, ip_of(peer), ip_size(peer))
        p.restricted = find_restricted(shared, p.ip, peer.length)
    p.expires_at = expires_at
    return True


cdef inline void drop_expired_permissions(Relay *relay, double before) noexcept nogil:
    cdef int i, kept = 0
    for i in range(relay.permission_count):
        if relay.permissions[i].expires_at > before:
            relay.permissions[kept] = relay.permissions[i]
            kept += 1
    relay.permission_count = kept


cdef inline void table_forbid(Relay *relay, const Address *peer) noexcept nogil:
    cdef Permission *p = find_permission(relay, peer)
    if p != NULL:
        relay.permission_count -= 1
        p[0] = relay.permissions[relay.permission_count]


cdef inline bint table_bind(Relay *relay, uint16_t number, const Address *peer, double expires_at) noexcept nogil:
    """Replaces what the number or the peer had before."""
    cdef int i, kept = 0, capacity
    cdef void *grown
    for i in range(relay.channel_count):
        if relay.channels[i].number != number and not same_address(&relay.channels[i].peer, peer):
            relay.channels[kept] = relay.channels[i]
            kept += 1
    relay.channel_count = kept
    if relay.channel_count == relay.channel_capacity:
        capacity = max(1, relay.channel_capacity * 2)
        grown = realloc(relay.channels, capacity * sizeof(Channel))
        if grown == NULL:
            return False
        relay.channels = <Channel *>grown
        relay.channel_capacity = capacity
    relay.channels[kept].number = number
    relay.channels[kept].peer = peer[0]
    relay.channels[kept].expires_at = expires_at
    relay.channel_count += 1
    return True


cdef inline User *acquire_user(Shared *shared, uint64_t id) noexcept nogil:
    """The buckets of an identity, shared by its relays; NULL when memory is short."""
    cdef User *user = shared.users
    while user != NULL and user.id != id:
        user = user.next
    if user == NULL:
        user = <User *>calloc(1, sizeof(User))
        if user == NULL:
            return NULL
        user.id = id
        fill_bytes(&user.up, shared.user_rate)
        fill_bytes(&user.down, shared.user_rate)
        user.next = shared.users
        shared.users = user
    user.references += 1
    return user


cdef inline void release_user(Shared *shared, User *user) noexcept nogil:
    cdef User **link = &shared.users
    user.references -= 1
    if user.references:
        return
    while link[0] != user:
        link = &link[0].next
    link[0] = user.next
    free(user)


cdef inline bint attach(Shard *s, Relay *relay, uint32_t listener, const Address *address, uint64_t user_id) noexcept nogil:
    """Let the relay serve this client."""
    cdef Client **link = client_link(s, listener, address)
    cdef Client *client = link[0]
    cdef User *user = acquire_user(s.shared, user_id)
    if user == NULL:
        return False
    if client == NULL:
        client = <Client *>calloc(1, sizeof(Client))
        if client != NULL and listener == STREAM:
            client.stream = <Stream *>calloc(1, sizeof(Stream))
            if client.stream == NULL:
                free(client)
                client = NULL
            else:
                client.stream.number = stream_number(address)
                client.stream.fd = -1
        if client == NULL:
            release_user(s.shared, user)
            return False
        client.address = address[0]
        client.listener = listener
        link[0] = client
    client.relays[0 if client.relays[0] == NULL else 1] = relay
    relay.client = client
    relay.user = user
    relay.next = relay_chain(s, &relay.local)[0]
    relay_chain(s, &relay.local)[0] = relay
    fill_bytes(&relay.up, s.shared.allocation_rate)
    fill_bytes(&relay.down, s.shared.allocation_rate)
    fill_packets(&relay.packets_up, s.shared.allocation_packet_rate)
    fill_packets(&relay.packets_down, s.shared.allocation_packet_rate)
    return True


cdef inline void detach(Shard *s, Relay *relay) noexcept nogil:
    """The reverse. With its last relay the client goes as well, unless a relay thread has its socket."""
    cdef Client *client = relay.client
    cdef Relay **place = relay_chain(s, &relay.local)
    cdef int k
    while place[0] != relay:
        place = &place[0].next
    place[0] = relay.next
    for k in range(2):
        if client.relays[k] == relay:
            client.relays[k] = NULL
    relay.client = NULL
    release_user(s.shared, relay.user)
    relay.user = NULL
    forget_if_idle(s, client)


cdef inline void forget_if_idle(Shard *s, Client *client) noexcept nogil:
    """Free a client without a relay, and what waits for it."""
    cdef Client **link
    cdef Stream **place
    if client.relays[0] != NULL or client.relays[1] != NULL or (client.stream != NULL and client.stream.fd >= 0):
        return
    link = client_link(s, client.listener, &client.address)
    link[0] = client.next
    if client.stream != NULL and client.stream.dirty:
        place = &s.dirty
        while place[0] != client.stream:
            place = &place[0].next_dirty
        place[0] = client.stream.next_dirty
    stream_free(client.stream)
    free(client)


# Stream clients: their key is a number of ours in place of an address.

cdef inline void stream_address(Address *out, uint32_t connection) noexcept nogil:
    memset(out, 0, sizeof(Address))
    (<uint16_t *>out.raw)[0] = AF_INET
    put16(out.raw + 2, connection & 0xFFFF)
    put16(out.raw + 6, connection >> 16)
    out.length = 16


cdef inline uint32_t stream_number(const Address *key) noexcept nogil:
    return (<uint32_t>be16(key.raw + 6) << 16) | be16(key.raw + 2)


cdef inline Client *stream_client(Shard *s, uint32_t connection) noexcept nogil:
    """The client with this connection, or NULL while it has no relay."""
    cdef Address key
    stream_address(&key, connection)
    return client_link(s, STREAM, &key)[0]


cdef inline void free_relay(Relay *relay) noexcept nogil:
    free(relay.permissions)
    free(relay.channels)
    free(relay)


cdef struct Worker:             # a shard and its lock
    Shard shard
    pthread_mutex_t lock
    int waiting                 # commands that want the lock: the relay thread lets them in between two rounds


cdef inline bint shard_init(Shard *s, Shared *shared, uint32_t clients, uint64_t seed, uint64_t prefix, double bindings, double requests) noexcept nogil:
    """`clients`: how many to expect, for the size of the hash table. False when memory is short."""
    cdef uint32_t size = 16
    cdef int i
    memset(s, 0, sizeof(Shard))
    while size < clients and size < 65536:
        size *= 2
    s.shared = shared
    s.bucket_mask = size - 1
    s.seed = seed
    s.indication_prefix = prefix | 1
    s.buckets = <Client **>calloc(size, sizeof(Client *))
    s.relays = <Relay **>calloc(size, sizeof(Relay *))
    s.bindings = <Bucket *>calloc(SOURCE_SLOTS, sizeof(Bucket))
    s.requests = <Bucket *>calloc(SOURCE_SLOTS, sizeof(Bucket))
    if s.buckets == NULL or s.relays == NULL or s.bindings == NULL or s.requests == NULL:
        shard_destroy(s)
        return False
    for i in range(SOURCE_SLOTS):
        fill(&s.bindings[i], bindings, bindings)
        fill(&s.requests[i], requests, requests)
    return True


cdef inline void shard_destroy(Shard *s) noexcept nogil:
    """Its relays must be closed before."""
    cdef Client *client
    cdef uint32_t i
    if s.buckets != NULL:
        for i in range(s.bucket_mask + 1):
            while s.buckets[i] != NULL:  # whose sockets were not taken back
                client = s.buckets[i]
                s.buckets[i] = client.next
                stream_free(client.stream)
                free(client)
    free(s.buckets)
    free(s.relays)
    free(s.bindings)
    free(s.requests)
    s.buckets = NULL
    s.relays = NULL
    s.bindings = NULL
    s.requests = NULL


cdef inline RestrictedAddress *table_restrict(Shared *shared, const Address *address) noexcept nogil:
    """The port set of this address, made if needed; NULL when memory is short. Lives as long as `shared`."""
    cdef RestrictedAddress *r = find_restricted(shared, ip_of(address), address.length)
    if r != NULL:
        return r
    r = <RestrictedAddress *>calloc(1, sizeof(RestrictedAddress))
    if r == NULL:
        return NULL
    r.ports = <uint8_t *>calloc(1, PORT_SET_BYTES)
    if r.ports == NULL:
        free(r)
        return NULL
    memcpy(r.ip, ip_of(address), ip_size(address))
    r.length = address.length
    r.next = shared.restricted
    shared.restricted = r
    return r


cdef inline void shared_destroy(Shared *shared) noexcept nogil:
    cdef RestrictedAddress *r
    while shared.restricted != NULL:
        r = shared.restricted
        shared.restricted = r.next
        free(r.ports)
        free(r)


cdef class RelayTable:
    cdef Shared shared
    cdef Worker *workers
    cdef int worker_count
    cdef Relay **relays         # by slot
    cdef uint32_t *generations  # outlive the relays: a thread checks a late event against them
    cdef int *free_slots
    cdef int free_count
    cdef int capacity

    cdef Relay *find(self, uint64_t handle) except NULL
    cdef Relay *new_relay(self, const Address *local) except NULL
    cdef void lock(self, int worker) noexcept nogil
    cdef void unlock(self, int worker) noexcept nogil
    cdef int lock_of(self, Relay *relay) noexcept nogil
    cdef void unlock_of(self, int worker) noexcept nogil
