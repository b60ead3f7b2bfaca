"""Codecs that both media packages need: bytes to values and back, nothing else.

Standard library only (the compiled `wire._batch` aside), no sockets, no clock, no state. Imports nothing of ours.

- `stun`: STUN messages, integrity, fingerprint (RFC 8489)
- `rtp`: fixed header and header extensions (RFC 3550, RFC 8285)
- `rtcp`: reports and feedback (RFC 3550, 3611, 4585, 5104, REMB)
- `transport_cc`: transport-wide feedback (draft-holmer-rmcat-transport-wide-cc)
- `sdp`: session descriptions (RFC 8866)
- `demux`: which protocol a datagram speaks (RFC 7983)
- `_batch`: `recvmmsg`, `sendmmsg` and UDP GSO trains (Cython), for the data planes of `sfu` and `turn`
"""
