// What tests ask of the real partysocket, in Node and in a page alike; `say` tells them what happens.
import { PartySocket } from "partysocket";

export function commandsFor(say) {
  const sockets = {};
  let crowd = [];

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
    /** Fill rooms; says "gathered" when all are in, and what each client heard when that is `expected` messages. */
    async gather({ host, rooms, clients, expected }) {
      const everybody = rooms.flatMap((room) =>
        Array.from({ length: clients }, () => {
          const mine = [];
          const socket = new PartySocket({ host, room });
          const opened = new Promise((resolve) => socket.addEventListener("open", resolve, { once: true }));
          const done = new Promise((resolve) => {
            socket.addEventListener("message", ({ data }) => {
              mine.push(data);
              if (mine.length === expected) resolve();
            });
          });
          return { room, mine, socket, opened, done };
        }),
      );
      crowd = everybody;
      await Promise.all(everybody.map(({ opened }) => opened));
      say({ type: "gathered" });
      // Not awaited: in Node one command is run after the other, and the next one makes them hear something.
      Promise.all(everybody.map(({ done }) => done)).then(() => {
        for (const { socket } of everybody) socket.close();
        say({ type: "heard", heard: everybody.map(({ room, mine }) => ({ room, mine })) });
      });
    },
    /** The first `senders` of each room say `messages` each. */
    speak({ rooms, senders, messages }) {
      for (let count = 0; count < messages; count++) {
        for (const name of rooms) {
          const speakers = crowd.filter(({ room }) => room === name).slice(0, senders);
          for (const [sender, { socket }] of speakers.entries()) socket.send(`say ${name} ${sender} ${count}`);
        }
      }
    },
  };
}
