"""The engine: the process that does all network traffic of a load test and takes all times.

A Locust process is patched by gevent; asyncio, uvloop and compiled sockets are not at home there. So each Locust
process starts one engine, plain asyncio on uvloop, and asks it for things over a socketpair; users are greenlets that
wait for answers. What happens often (deliveries, packets) never crosses: the engine counts it and sends histograms
twice a second. `docs/loadtest.md` has the picture and what was rejected.

Modules: `protocol` (messages on the socketpair), `server` (the loop, its own load), `rooms` (WebSockets and HTTP),
`dialects` (how a room message travels), `media` (publications, subscriptions, relays), `remote` (the Locust side; the
only module here that knows gevent).
"""
