// Drives the real partysocket: reads commands as JSON lines, writes what happens as JSON lines.
import { createInterface } from "node:readline";
import { PartySocket } from "partysocket";

const say = (event) => process.stdout.write(JSON.stringify(event) + "\n");
const sockets = {};

const commands = {
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
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...rest } = JSON.parse(line);
  await commands[command](rest);
}
process.exit(0);
