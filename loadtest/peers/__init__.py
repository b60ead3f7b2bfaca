"""The servers under load, each behind one small face; everything else in `loadtest` sees them only over the network.

`process.py` starts, watches and stops any of them. A *room peer* has `url` and `dialect` (see `RoomPeer`) and serves
**the load room**, which behaves alike on every server. A message is text, and its first character says what happens:

| first character | the room |
|---|---|
| `b` | broadcasts it, unchanged, to every *other* connection of the room |
| `e` | sends it back, unchanged, to its sender alone: an echo |
| `w` | writes it to the room's storage and sends it back once that is on disk; servers without storage do nothing |
| `p` | the whole message is `ping`: answered by `pong`, on servers that can without waking the room |

An HTTP GET of the room's address answers 200 with JSON `{"connections": N}`, where the server's rooms can answer HTTP.
Nothing else is sent by the room: no greeting, no presence.

The dialect `text` sends a message as one WebSocket text frame, to `room_path`. The dialect `socket.io` speaks
Engine.IO 4 over WebSocket alone, to `/socket.io/?EIO=4&transport=websocket&room=<room>`: each message, either way, is
the only argument of the event `message` in the namespace `/`.
"""
