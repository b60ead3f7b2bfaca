"""The forwarding plane: RTP from publishers to subscribers in threads that hold no GIL and make no Python object.

Theory of operation
===================

**Threads and ownership.** A `Plane` runs N threads. Each has, for every address, its own UDP socket on the one port
(SO_REUSEPORT; the system hashes a remote tuple always to the same socket), its own epoll, send arena, timers and
counters. A *transport* is owned by the thread whose socket its first selected tuple came in on, for life: that thread
alone unprotects and protects its SRTP, receives its tracks and feeds its forwarders. What comes to the wrong thread
crosses:

* a datagram of a transport that another thread owns is copied into a *parcel ring* (after an ICE restart, say);
* a packet for subscribers of another thread crosses as (stream, ext_seq) in a *cross ring*; the other thread copies
  the bytes from the publisher's cache, checks that they were not overwritten meanwhile, and batches for itself;
* key frame requests and "the live layers changed" cross in the same ring, the other way or along.

With an exchange (`wire._batch`), peers behind relays of this process come in memory: each thread has an *inbox* and
drains it like a socket. Such a peer's path is on a socket index of its own, by our thread, our address and the other
plane's thread, so that answers find back; `select_tuple` gives the transport a `Socket` that leads to an inbox there.

Rings have one producer and one consumer each. A thread is woken by an eventfd, and only if it sleeps.

**One batch.** `recvmmsg` (with UDP_GRO) → demultiplex → unprotect in place → number, note losses, cache → *jobs*,
listed by stream → for each stream, subscriber by subscriber, packet by packet: header, one memcpy, `srtp_protect` in
the arena → `sendmmsg` with UDP_SEGMENT trains. Subscriber in the outer loop: its SRTP context stays in the cache of
the core, and its packets lie side by side, which is what makes a train. Then timers, upcalls, sleep until the next
deadline.

**Changing the graph.** A thread holds its own mutex from the start of a batch to its end. Python takes *all* mutexes
(the GIL released), changes the graph, gives them back. A thread looks between two datagrams whether Python waits;
then it forwards and flushes what it has, and queues up behind Python at a turnstile, so neither starves. Hence:
nothing is linked, unlinked or freed while a thread looks at it, objects point to each other freely, and there is no
reference counting. What outlives a batch names objects by id: ring entries, a ledger's former sources.

**What is shared without a lock**, between two owners' threads: a stream's packet cache (version per slot, copy then
check), its sender-report clock (version), its `alive` flag and `fanout[t].count` (aligned words). Everything else has
one owner; the head of `graph.pxd` lists it.

**SRTP.** One libsrtp session receives per transport (a stream context appears only after a packet of its SSRC
authenticated; at most `max_streams_per_transport`, the one learnt first goes), one sends our RTCP, and each forwarder
has one of its own for media, RTX and sender reports, because libsrtp finds a stream inside a session by linear
search.

**The shield.** Nothing a subscriber says reaches a publisher, but key frame requests through one throttle per layer.
A NACK is answered from the publisher's cache: as RTX, or without RTX as exactly the same datagram (the ledger keeps
what is needed to rebuild it bit by bit), or not at all.

**Memory.** An idle transport: its struct (about 2 KiB), a tuple entry, two libsrtp sessions; no timer. A layer that
somebody consumes gets cache pages: 256 packets and 320 KiB (audio 64 and 8 KiB), doubled while packets would be
overwritten before their age (2 s, audio 1 s), up to 8192 packets, within `cache_bytes_max` for all; several threads get
the first pages beyond it too, because packets go from one to another through them. A forwarder: about 3 KiB and a
ledger of 256 to 8192 entries of 48 bytes, doubled likewise. Per thread: 4 MiB to receive into, 512 KiB arena, the
upcall rings. On the packet path nothing is allocated, but for the first packet of an SSRC.

**Drops** are counters with a reason (`drop_<reason>` of `Plane.stats`), never an exception or a log line.

**VP8.** A stream that changed its source once has its running numbers (PictureID, TL0PICIDX, KEYIDX) rewritten from
then on, because decoders wait for numbers that are missing. They are read once per packet received, written per packet
sent, and kept in the ledger. Before the first change a packet costs one copy of six bytes.

Not here: ICE, DTLS, SDP (Python decides), bandwidth estimation, pacing, temporal layers, rewriting of other codecs.

Where to look
=============

| to change | open |
|---|---|
| what Python can ask for | `plane.pyi`, `plane.pyx`, `arguments.pxd` (checks), `figures.pxd` (statistics) |
| the loop of a thread, the locks | `worker.pxd` |
| structs, and who may touch them | `graph.pxd` |
| lists, deadlines, rings, waking | `ops.pxd` |
| how objects are made and unmade | `link.pxd`, `setup.pxd` |
| what happens to a datagram | `ingress.pxd` (RFC 7983, SRTP), `binding.pxd` (SSRC to layer), `reception.pxd` |
| what a subscriber gets | `jobs.pxd`, `forward.pxd` (one packet, switching), `egress.pxd` (protect, flush) |
| RTCP that comes in | `feedback.pxd`; as bytes: `rtcp.pxd` |
| NACKs, reports, liveness, growth | `timers.pxd` |
| key frame requests | `keyframes.pxd` |
| transport-wide feedback | `twcc.pxd` |
| RTP as bytes, key frame starts, VP8 numbers | `packet.pxd`, `keyframe.pxd`, `vp8.pxd` |
| sequence numbers, cache, losses, resends | `sequence.pxd`, `cache.pxd`, `loss.pxd`, `ledger.pxd` |
| what tests drive without sockets | `core.pyx` |
| what Python is told | `upcalls.pxd`, `deliver.pxd` |
| socket indices, in memory and not | `sockets.pxd` |
| sockets, libsrtp | `endpoint.py`, `srtp.py`; batched system calls: `wire/_batch/udp.pxd` |

The `.pxd` files hold inline functions, so that the C compiler sees the whole packet path as one unit.
"""
