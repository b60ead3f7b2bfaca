"""Python's arguments into C structs, each checked. Holds the GIL; raises ValueError with the value; changes nothing shared."""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from sfu._dataplane.graph cimport CNAME_MAX, NO_PAYLOAD_TYPE, RID_MAX, Forwarder, PayloadType, Track
from sfu._dataplane.keyframe cimport C_COUNT
from sfu._dataplane.packet cimport MID_LENGTH_MAX, X_COUNT, finish_template


cdef inline int fill_payload_types(uint8_t *out, mapping) except -1:
    """128 entries; what is not mapped is NO_PAYLOAD_TYPE."""
    memset(out, NO_PAYLOAD_TYPE, 128)
    for from_, to in mapping.items():
        if not (0 <= from_ < 128 and 0 <= to < 128):
            raise ValueError(f"payload type {from_} to {to}")
        out[<int>from_] = to
    return 0


cdef inline int fill_rid(char *out, str rid) except -1:
    cdef bytes text = rid.encode()
    if len(text) > RID_MAX:
        raise ValueError(f"rid of {len(text)} bytes, at most {RID_MAX}")
    memset(out, 0, RID_MAX + 1)
    memcpy(out, PyBytes_AS_STRING(text), len(text))
    return 0


cdef inline int fill_mid(uint8_t *out, uint8_t *length, str mid) except -1:
    cdef bytes text = mid.encode()
    if len(text) > MID_LENGTH_MAX:
        raise ValueError(f"mid of {len(text)} bytes, at most {MID_LENGTH_MAX}")
    memcpy(out, PyBytes_AS_STRING(text), len(text))
    length[0] = <uint8_t>len(text)
    return 0


cdef inline int fill_track(Track *track, codecs, extensions) except -1:
    """Payload types and extension ids of a zeroed track."""
    cdef PayloadType *kind
    for payload_type, codec in codecs.items():
        if not 0 <= payload_type < 128 or not 0 <= codec["codec"] < C_COUNT or not -1 <= codec["apt"] < 128:
            raise ValueError(f"payload type {payload_type}: {codec}")
        if codec["clock_rate"] <= 0:
            raise ValueError(f"clock rate {codec['clock_rate']}")
        kind = &track.payload_types[<int>payload_type]
        kind.known = 1
        kind.codec = codec["codec"]
        kind.clock_rate = codec["clock_rate"]
        kind.apt = codec["apt"]
        kind.nack = bool(codec["nack"])
        kind.pli = bool(codec["pli"])
        kind.fir = bool(codec["fir"])
    for wire_id, extension in extensions.items():
        if not 1 <= wire_id <= 255 or not 0 < extension < X_COUNT:
            raise ValueError(f"header extension {wire_id}: {extension}")
        track.ids[<int>wire_id] = extension
    return 0


cdef inline int fill_template(Forwarder *f, str mid, extensions) except -1:
    for extension, wire_id in extensions.items():
        if not 1 <= wire_id <= 255 or not 0 < extension < X_COUNT:
            raise ValueError(f"header extension {extension}: {wire_id}")
        f.template.out_id[<int>extension] = wire_id
    fill_mid(f.template.mid, &f.template.mid_length, mid)
    finish_template(&f.template)
    return 0


cdef inline int fill_cname(Forwarder *f, str cname) except -1:
    cdef bytes text = cname.encode()
    if len(text) > CNAME_MAX:
        raise ValueError(f"cname of {len(text)} bytes, at most {CNAME_MAX}")
    memset(f.cname, 0, sizeof(f.cname))
    memcpy(f.cname, PyBytes_AS_STRING(text), len(text))
    return 0
