// The load room (see `loadtest/peers/__init__.py`) for socket.io: `?room=` instead of a path, messages as `message`
// events, no storage and no hibernation, so a handler answers `ping`. Heartbeats are Engine.IO's own, from the server.
// The argument is the port, on loopback.

import { createServer } from "node:http";
import { Server } from "socket.io";

const http = createServer((request, response) => {
  const room = new URL(request.url, "http://localhost").searchParams.get("room");
  const connections = io.sockets.adapter.rooms.get(room)?.size ?? 0;
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify({ connections }));
});
const io = new Server(http, { transports: ["websocket"], perMessageDeflate: false, serveClient: false });

io.on("connection", (socket) => {
  const room = String(socket.handshake.query.room);
  socket.join(room);
  socket.on("message", (message) => {
    if (message[0] === "b") {
      socket.to(room).emit("message", message);
    } else if (message[0] === "e" || message === "ping") {
      socket.emit("message", message === "ping" ? "pong" : message);
    }
  });
});

http.listen(Number(process.argv[2]), "127.0.0.1", 4096);
