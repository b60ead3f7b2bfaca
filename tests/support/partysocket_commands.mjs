// What tests ask of the real partysocket, in Node and in a page alike; `say` tells them what happens.
import { PartySocket } from "partysocket";

export function commandsFor(say) {
  const sockets = {};

  return {
    open({ name, options, early }) {
      const socket = new PartySocket(options);
      sockets[name] = socket;
      socket.addEventListener("open", () => say({ name, type: "open", id: socket.id }));
      socket.addEventListener("message", ({ data }) => say({ name, type: "message", data }));
      socket.addEventListener("close", ({ code, reason }) => say({ name, type: "close", code, reason }));
      for (const message of early ?? []) socket.send(message);
    },
    send({ name, message }) {
      sockets[name].send(message);
    },
    reconnect({ name, code }) {
      sockets[name].reconnect(code);
    },
    close({ name }) {
      sockets[name].close();
    },
    async fetch({ options, init }) {
      const response = await PartySocket.fetch(options, init);
      say({ type: "response", status: response.status, text: await response.text() });
    },
    /** Fill rooms; when all are open, `senders` of each room say `messages` each; tells what every client heard. */
    async crowd({ host, rooms, clients, senders, messages }) {
      const heard = [];
      const crowds = rooms.map((room) =>
        Array.from({ length: clients }, () => {
          const mine = [];
          const socket = new PartySocket({ host, room });
          const opened = new Promise((resolve) => socket.addEventListener("open", resolve, { once: true }));
          const done = new Promise((resolve) => {
            socket.addEventListener("message", ({ data }) => {
              mine.push(data);
              if (mine.length === senders * messages) resolve();
            });
          });
          heard.push({ room, mine });
          return { socket, opened, done };
        }),
      );
      const everybody = crowds.flat();
      await Promise.all(everybody.map(({ opened }) => opened));
      for (let count = 0; count < messages; count++) {
        for (const [index, crowd] of crowds.entries()) {
          for (let sender = 0; sender < senders; sender++) {
            crowd[sender].socket.send(`say ${rooms[index]} ${sender} ${count}`);
          }
        }
      }
      await Promise.all(everybody.map(({ done }) => done));
      for (const { socket } of everybody) socket.close();
      say({ type: "heard", heard });
    },
  };
}
