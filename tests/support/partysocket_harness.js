// Drives the real partysocket in a page, as `partysocket_client.mjs` does in Node; the test exposes `say`.
import { commandsFor } from "./partysocket_commands.mjs";

const commands = commandsFor((event) => window.say(event));

window.tell = ({ command, ...rest }) => void commands[command](rest);
