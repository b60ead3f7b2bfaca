"""The sockets' home: connections outlive the object instances they talk to.

Every server-side WebSocket moves into one socket table right after its handshake and stays there to its end, whether
its object is awake, hibernating or being replaced. An idle connection is a row: no Python object, no buffer, no timer.

    uvicorn ─▶ endpoint ──descriptor──▶ _sockets (the table) ◀──reader, timer── service
                  │ upgrade                  │ events                  ▲ rows, sends
                  ▼                          ▼                         │
               Waker.connect            dispatcher ──▶ Waker      manager ◀── Connections   (ports of `objects`)

Not here: handlers, storage, gates (`objects`); hooks and rooms (`partykit_compat`).

Where to look: who may connect and how the descriptor moves, `endpoint.py`; plain ASGI WebSockets, `asgi.py`; order,
backpressure, overload, `dispatcher.py`; lists, tags, attachments, resets, `manager.py`; answers without waking,
`autoresponse.py`; sockets and objects in two processes, `link.py`, `sockets_end.py`, `objects_end.py`; frames, queues,
timers, `_sockets/table.pyi`. RFC 6455 (WebSocket), RFC 7692 (permessage-deflate).
"""
