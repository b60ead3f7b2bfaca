/**
 * Who is in the room and where their tracks are, kept by the server's demo membership list (`torpor/demo.py`).
 *
 * Dispatches "members" when the list changed, "offline" when the server stopped answering and "online" when it is back.
 */

const HEARTBEAT_MS = 4_000;
const RETRY_MS = 1_000;

export class JoinRefused extends Error {}

export class Room extends EventTarget {
  #url;
  #displayName;
  #token = null;
  #presence = { tracks: [], muted: false, cameraOff: false };
  #events = null;
  #timer = null;
  #beating = false;
  #news = false;
  #left = false;

  constructor(name, displayName) {
    super();
    this.name = name;
    this.memberId = null;
    this.members = [];
    this.online = true;
    this.#url = `/demo/rooms/${encodeURIComponent(name)}`;
    this.#displayName = displayName;
  }

  /** Enter the room; throws `JoinRefused` with a sentence for the person, or a TypeError when nobody answers. */
  async join() {
    this.#news = false;
    const response = await this.#send("POST", "/members", { name: this.#displayName, ...this.#presence });
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new JoinRefused(answer.errorDescription ?? "The server did not let you in.");
    this.memberId = answer.memberId;
    this.#token = answer.token;
    this.#listen();
    this.#schedule(this.#news ? 0 : HEARTBEAT_MS);
  }

  /** Tell the others about changed tracks or a changed state. */
  announce(presence) {
    this.#presence = { ...this.#presence, ...presence };
    this.#news = true;
    if (this.memberId) this.#beat();
  }

  /** Works while the page is being closed as well. */
  leave() {
    if (this.#left) return;
    this.#left = true;
    clearTimeout(this.#timer);
    this.#events?.close();
    if (this.memberId) this.#send("DELETE", `/members/${this.memberId}`).catch(() => {});
  }

  #listen() {
    this.#events?.close();
    this.#events = new EventSource(`${this.#url}/events`);
    this.#events.addEventListener("members", ({ data }) => {
      this.members = JSON.parse(data);
      this.#setOnline(true);
      this.dispatchEvent(new Event("members"));
    });
    this.#events.addEventListener("error", () => {
      this.#setOnline(false);
      this.#schedule(RETRY_MS);
    });
  }

  #schedule(ms = HEARTBEAT_MS) {
    clearTimeout(this.#timer);
    if (!this.#left) this.#timer = setTimeout(() => this.#beat(), ms);
  }

  /** One request at a time: the server must not get an older presence after a newer one. */
  async #beat() {
    if (this.#beating || this.#left) return;
    this.#beating = true;
    clearTimeout(this.#timer);
    let wait = HEARTBEAT_MS;
    try {
      this.#news = false;
      const response = await this.#send("PUT", `/members/${this.memberId}`, this.#presence);
      // A restarted server knows nobody.
      if (response.status === 404 && !this.#left) await this.join();
      else if (this.#events.readyState === EventSource.CLOSED && !this.#left) this.#listen();
    } catch {
      this.#setOnline(false);
      wait = RETRY_MS;
    }
    this.#beating = false;
    this.#schedule(this.#news ? 0 : wait);
  }

  #setOnline(online) {
    if (online === this.online || this.#left) return;
    this.online = online;
    this.dispatchEvent(new Event(online ? "online" : "offline"));
  }

  #send(method, path, body) {
    const headers = { ...(this.#token && { "member-token": this.#token }) };
    if (body) headers["content-type"] = "application/json";
    return fetch(this.#url + path, { method, headers, body: body && JSON.stringify(body), keepalive: method === "DELETE" });
  }
}
