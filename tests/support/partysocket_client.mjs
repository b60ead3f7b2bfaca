// Drives the real partysocket in Node: reads commands as JSON lines, writes what happens as JSON lines.
import { createInterface } from "node:readline";
import { commandsFor } from "./partysocket_commands.mjs";

const commands = commandsFor((event) => process.stdout.write(JSON.stringify(event) + "\n"));

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...rest } = JSON.parse(line);
  await commands[command](rest);
}
process.exit(0);
