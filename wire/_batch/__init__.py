"""Batched UDP in Cython for both data planes: many datagrams per system call, trains of equal segments, no GIL.

`udp.pxd` is cimported by the forwarding and relaying threads; `udp.BatchedUdp` is the same code behind a Python class,
for tests and benchmarks. Where the kernel refuses UDP_SEGMENT, a socket falls back to one message per datagram.

`gather.pxd` is the rule by which a busy thread waits a little, so that more come per call.

The planes may not know each other, but the clients of one may be peers of the other. `exchange.Exchange` joins two
planes of a process: what one sends to an address of the other is put into an inbox (`inbox.pxd`) instead of a socket.
"""
