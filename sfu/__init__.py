"""The session/track SFU: forwards RTP without decoding and shields publishers from subscribers' losses.

Python decides, Cython forwards. Sessions, SDP, ICE-lite and DTLS are Python and sans-I/O; `_dataplane` runs the
forwarding threads without the GIL and is told by Python which tracks feed which forwarders.

Non-goals: rooms (the API has none), decoding or mixing media.

Where to look:

| to change | open |
|---|---|
| what a session may do, in which order | `session.py` |
| which codecs, extensions and directions an answer holds | `negotiation.py` |
| connectivity checks, consent, restart | `ice.py` |
| handshake, fingerprints, keys | `dtls.py` |
| which track feeds which forwarder | `router.py` |
| the HTTP API's shapes and errors | `routes.py`, `errors.py` |
| what happens per packet | `_dataplane/` (and `_reference.py`, its plain-Python twin) |
"""
