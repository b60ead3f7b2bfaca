"""The session/track SFU: forwards RTP without decoding and shields publishers from subscribers' losses.

Python decides, Cython forwards. Sessions, SDP, ICE-lite and DTLS are Python and sans-I/O; `_dataplane` runs the
forwarding threads without the GIL and is told by Python which tracks feed which forwarders.

Non-goals: rooms (the API has none), decoding or mixing media.

RFC 8445 (lite), 8489, 7675; 5763, 5764, 6347, 8842; 3711, 7714; 8866, 9143, 9429, 8851 to 8853; 3550, 4585, 4588, 8285.

Where to look, beginning with `session.py`:

| to change | open |
|---|---|
| what a session may do, in which order | `session.py` |
| what becomes of tracks once sections are agreed | `media.py` |
| the order of offers and answers, which section is recycled | `negotiation.py` |
| what one section of an answer or an offer holds | `sections.py` |
| which codecs and extensions are forwarded, when two are equal | `codecs.py` |
| connectivity checks, consent, restart, floods of checks | `ice.py` |
| handshake, fingerprints, keys | `dtls.py`, `srtp.py` |
| how ICE, DTLS and the plane make one path | `transport.py` |
| which track feeds which forwarder | `router.py`, `track.py` |
| what waits, what is told to listeners, timers | `service.py`, `endpoint.py`, `deadlines.py` |
| limits and times | `settings.py` |
| the HTTP API's shapes and errors | `routes.py`, `schemas.py`, `errors.py` |
| what happens per packet | `_dataplane/` (and `_reference.py`, its plain-Python twin) |
"""
