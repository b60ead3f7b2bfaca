// A real Yjs provider in Node: reads commands as JSON lines, writes what happens as JSON lines.
import { createInterface } from "node:readline";
import WebSocket from "ws";
import * as Y from "yjs";
import PartyKitProvider from "y-partykit/provider";
import PartyServerProvider from "y-partyserver/provider";

const [kind, host, room] = process.argv.slice(2);
const say = (event) => process.stdout.write(JSON.stringify(event) + "\n");
const doc = new Y.Doc();
const text = doc.getText("t");
const Provider = kind === "y-partykit" ? PartyKitProvider : PartyServerProvider;
const provider = new Provider(host, room, doc, { disableBc: true, WebSocketPolyfill: WebSocket });

const tell = () =>
  say({
    length: text.length,
    text: text.toString().slice(0, 100),
    synced: provider.synced,
    names: [...provider.awareness.getStates().values()].map(({ name }) => name).filter(Boolean).sort(),
  });
doc.on("update", tell);
provider.awareness.on("change", tell);
provider.on("sync", tell);
provider.on("status", ({ status }) => say({ status }));

for await (const line of createInterface({ input: process.stdin })) {
  const { insert, repeat = 1, name } = JSON.parse(line);
  if (insert) text.insert(text.length, insert.repeat(repeat));
  if (name) provider.awareness.setLocalStateField("name", name);
}
process.exit(0);
