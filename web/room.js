/**
 * Who is in the room and where their tracks are: one of the server's rooms (`torpor/demo.py`), over a WebSocket.
 *
 * Dispatches "members" when the list changed, "offline" when the server stopped answering and "online" when it is back.
 */

const PING_MS = 4_000;
const SILENCE_MS = 9_000;
const RETRY_MS = 1_000;
const REFUSED = 4_400; // and above: the reason is for the person

export class JoinRefused extends Error {}

export class Room extends EventTarget {
  #url;
  #socket = null;
  #presence = { tracks: [], muted: false, cameraOff: false };
  #entering = null;
  #heardAt = 0;
  #timer = null;
  #left = false;

  constructor(name, displayName) {
    super();
    this.name = name;
    this.memberId = null;
    this.members = [];
    this.online = true;
    // Known to this page alone: with the same one it takes its own place again when it comes back.
    const secret = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    const query = new URLSearchParams({ name: displayName, _pk: secret });
    this.#url = `${location.origin.replace(/^http/, "ws")}/parties/torpor-demo/${encodeURIComponent(name)}?${query}`;
  }

  /** Enter the room; throws `JoinRefused` with a sentence for the person, or a TypeError when nobody answers. */
  async join() {
    const entered = new Promise((resolve, reject) => (this.#entering = { resolve, reject }));
    this.#connect();
    await entered;
  }

  /** Tell the others about changed tracks or a changed state. */
  announce(presence) {
    this.#presence = { ...this.#presence, ...presence };
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(this.#presence));
  }

  /** Works while the page is being closed as well. */
  leave() {
    this.#left = true;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
  }

  #connect() {
    const socket = (this.#socket = new WebSocket(this.#url));
    this.#heardAt = Date.now();
    socket.addEventListener("open", () => this.announce({}));
    socket.addEventListener("message", ({ data }) => socket === this.#socket && this.#hear(data));
    socket.addEventListener("close", ({ code, reason }) => socket === this.#socket && this.#lost(code, reason));
    this.#watch();
  }

  #hear(data) {
    this.#heardAt = Date.now();
    if (data === "pong" || this.#left) return;
    const { you, members } = JSON.parse(data);
    if (you) this.memberId = you;
    if (!members) return;
    this.members = members;
    this.#entering?.resolve();
    this.#entering = null;
    this.#setOnline(true);
    this.dispatchEvent(new Event("members"));
  }

  /** A connection may end without anybody saying so: what does not answer for a while is given up. */
  #watch() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      if (Date.now() - this.#heardAt > SILENCE_MS) return this.#lost();
      if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send("ping");
      this.#watch();
    }, PING_MS);
  }

  #lost(code, reason) {
    clearTimeout(this.#timer);
    this.#socket.close();
    this.#socket = null;
    if (this.#left) return;
    if (this.#entering) {
      this.#left = true;
      this.#entering.reject(code >= REFUSED ? new JoinRefused(reason) : new TypeError("the server does not answer"));
      return;
    }
    this.#setOnline(false);
    this.#timer = setTimeout(() => this.#connect(), RETRY_MS);
  }

  #setOnline(online) {
    if (online === this.online) return;
    this.online = online;
    this.dispatchEvent(new Event(online ? "online" : "offline"));
  }
}
