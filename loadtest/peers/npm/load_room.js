// The load room (see `loadtest/peers/__init__.py`) for workerd, as a partyserver class that hibernates.

import { Server, routePartykitRequest } from "partyserver";

export class Main extends Server {
  static options = { hibernate: true };

  onStart() {
    this.ctx.setWebSocketAutoResponse(new WebSocketRequestResponsePair("ping", "pong"));
  }

  onMessage(connection, message) {
    switch (message[0]) {
      case "b":
        this.broadcast(message, [connection.id]);
        break;
      case "w":
        this.ctx.storage.put("last", message); // the output gate holds the answer until this is on disk
      // falls through
      case "e":
        connection.send(message);
    }
  }

  onRequest() {
    return Response.json({ connections: [...this.getConnections()].length });
  }
}

export default {
  async fetch(request, env) {
    return (await routePartykitRequest(request, env)) ?? new Response("Not found", { status: 404 });
  },
};
