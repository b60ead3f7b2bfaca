"""The media client's plane: one thread without the GIL that sends, receives, repairs and counts for all its peers.

- `plane.pyx`: `Plane`, what Python sees. `graph.pxd`: peers, their streams, the state. `loop.pxd`: the thread.
- `egress.pxd`, `ingress.pxd`, `feedback.pxd`: packets out, packets in, RTCP both ways.
- `sending.pxd`: clips on a schedule, the history that answers NACKs. `reception.pxd`: order, loss, frames, freezes.
- `rtcp.pxd`: reports and feedback as bytes. `arrivals.pxd`: transport-wide feedback. `heap.pxd`: what is due next.
- `histogram.pxd`: buckets of `loadtest.histogram`. `core.pyx`: the parts that tests compare with a plain twin.
- `srtp.py`: libsrtp's sessions and the addresses of its functions.

One mutex guards all: the thread holds it while it works and lets it go to sleep; Python takes it to read or change.
Per packet nothing is allocated and no Python object is touched.
"""
