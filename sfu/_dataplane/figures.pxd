"""C counters as Python dicts (IO-4, SHLD-5). The caller holds the GIL and, where threads write, the graph's locks."""

from sfu._dataplane.graph cimport DROP_COUNT, Counters, Forwarder, PlaneState, Stream, Transport
from wire._batch.udp cimport SendCounters


cdef inline tuple drop_names():
    """In the order of graph.Drop."""
    return (
        "first_byte", "short", "truncated", "stranger", "stun_budget", "upcall_full", "no_keys", "oversize", "malformed",
        "authentication", "replay", "payload_type", "unbound", "retired_ssrc", "empty", "padding", "probe", "jump",
        "stale", "duplicate", "rtcp_malformed", "rtcp_foreign", "nack_budget", "parcel_full", "ring_full", "ring_gone",
        "late", "blocked", "protect", "no_memory",
    )


cdef inline dict plane_figures(PlaneState *state):
    """Sums over all threads; `drop_<reason>` for each reason, also those at 0."""
    cdef dict out = {"cache_bytes": state.cache_bytes, "gso_refused": 0}
    cdef dict counters
    cdef dict sender
    cdef int i, k
    for i in range(state.thread_count):
        counters = state.threads[i].counters
        sender = state.threads[i].sender.counters
        for name, count in zip(drop_names(), counters.pop("drops")):
            counters["drop_" + name] = count
        del counters["latency"], counters["batch_fill"]
        counters["datagrams_out"] = sender["datagrams"]
        counters["bytes_out"] = sender["bytes"]
        counters["send_calls"] = sender["calls"]
        counters["send_held"] = sender["held"]
        counters["gso_trains"] = sender["trains"]
        counters["gso_datagrams"] = sender["train_datagrams"]
        counters["drop_send_blocked"] = sender["dropped_blocked"]
        counters["drop_send_error"] = sender["dropped_error"]
        counters["in_memory_out"] = sender["in_memory"]
        counters["drop_inbox_full"] = sender["dropped_inbox_full"]
        counters["drop_inbox_closed"] = sender["dropped_inbox_closed"]
        for name, count in counters.items():
            out[name] = out.get(name, 0) + count
        for k in range(state.address_count):
            out["gso_refused"] += state.threads[i].sockets[k].gso_refused
    return out


cdef inline list latency_figures(PlaneState *state):
    cdef list out = [0] * 32
    cdef int i, k
    for i in range(state.thread_count):
        for k in range(32):
            out[k] += state.threads[i].counters.latency[k]
    return out


cdef inline list batch_figures(PlaneState *state):
    cdef list out = [0] * 16
    cdef int i, k
    for i in range(state.thread_count):
        for k in range(16):
            out[k] += state.threads[i].counters.batch_fill[k]
    return out


cdef inline dict transport_figures(Transport *t):
    return {
        "packets_in": t.packets_in,
        "bytes_in": t.bytes_in,
        "packets_out": t.packets_out,
        "bytes_out": t.bytes_out,
        "authentication_failures": t.authentication_failures,
        "replays": t.replays,
        "tuples": t.tuple_count,
        "ssrcs": t.incoming.count,
        "thread": t.owner,
    }


cdef inline dict stream_figures(Stream *s):
    return {
        "rid": s.rid.decode(),
        "ssrc": s.ssrc,
        "rtx_ssrc": s.rtx_ssrc,
        "packets": s.packets,
        "bytes": s.bytes,
        "bitrate_bps": s.bitrate,
        "lost": s.lost,
        "nacks_sent": s.nacks_sent,
        "repaired": s.loss.repaired,
        "rtt": s.rtt / 1e6,
        "jitter_ticks": s.jitter,
        "keyframes": s.keyframes,
        "keyframe_requests": s.keyframe_requests,
        "alive": int(s.alive),
        "cache_bytes": s.cache_bytes,
        "last_packet_at": s.last_packet / 1e6,
    }


cdef inline dict forwarder_figures(Forwarder *f):
    """`track` and `layer` are what plays now (0 and -1: nothing); `waiting`: a change waits for its key frame."""
    return {
        "packets": f.packets,
        "bytes": f.bytes,
        "nacks_in": f.nacks_in,
        "answered": f.answered,
        "suppressed": f.suppressed,
        "missed": f.missed,
        "rtx_bytes": f.rtx_bytes,
        "plis_in": f.plis_in,
        "fraction_lost": f.fraction_lost / 256.0,
        "rtt": f.rtt / 1e6,
        "track": f.current.track.id if f.current.track != NULL else 0,
        "layer": f.current.stream.layer if f.current.stream != NULL else -1,
        "ssrc": f.ssrc,
        "waiting": int(f.next.track != NULL),
    }
