/**
 * A small client of the session/track API: publish tracks, pull tracks, survive a lost connection.
 *
 * What is wanted (`Publication`s, `Subscription`s) is kept apart from what the current session has. One loop compares
 * the two and makes one request at a time, so offers never overlap. When a session is lost the loop opens another and
 * everything wanted is published and pulled again, under the same names.
 *
 *   const client = new RealtimeClient();
 *   const mine = client.push(cameraTrack);            // mine.address, once "published" was dispatched
 *   const theirs = client.pull({ sessionId, trackName });
 *   theirs.addEventListener("track", () => (video.srcObject = new MediaStream([theirs.track])));
 */

/** How long a transport may stay `disconnected` before the session counts as lost. */
const DISCONNECTED_LIMIT_MS = 7_000;
/** Entries in one request; the server takes at most 64. */
const BATCH = 32;
const RETRY_FIRST_MS = 250;
const RETRY_MAX_MS = 4_000;
/** A request that gets no answer is given up after this; the server itself holds one for up to 8 s. */
const REQUEST_LIMIT_MS = 15_000;

const backoff = (attempt) => Math.min(RETRY_MAX_MS, RETRY_FIRST_MS * 2 ** attempt);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** A random name that needs no secure context, unlike `crypto.randomUUID`. */
const randomName = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** The server answered with an error for the whole request. */
export class ApiError extends Error {
  constructor(status, { errorCode = "unknown_error", errorDescription = "" } = {}) {
    super(`${status} ${errorCode}${errorDescription && `: ${errorDescription}`}`);
    this.status = status;
    this.code = errorCode;
  }

  /** Worth asking again as it is; anything else needs a new session. */
  get transient() {
    return this.status === 429 || this.status >= 500;
  }
}

/** A track that this page sends. Dispatches "published" whenever it has a new address. */
export class Publication extends EventTarget {
  constructor(track, { sendEncodings, wake }) {
    super();
    this.track = track;
    this.kind = track.kind;
    this.trackName = `${track.kind}-${randomName()}`;
    this.sendEncodings = sendEncodings;
    this.sessionId = null;
    this.transceiver = null;
    this.closed = false;
    this.attempts = 0;
    this.retryAt = 0;
    this.wake = wake;
  }

  /** What others need to pull it, or null while it is not published. */
  get address() {
    return this.sessionId && !this.closed ? { sessionId: this.sessionId, trackName: this.trackName } : null;
  }

  /** Send another track of the same kind in its place; needs no negotiation. */
  async replaceTrack(track) {
    this.track = track;
    await this.transceiver?.sender.replaceTrack(track);
  }

  close() {
    this.closed = true;
    this.wake();
  }
}

/** A track that this page receives. Dispatches "track" when media can be attached, also after each reconnect. */
export class Subscription extends EventTarget {
  constructor({ sessionId, trackName }, { preferredRid = "", wake }) {
    super();
    this.sessionId = sessionId;
    this.trackName = trackName;
    this.preferredRid = preferredRid;
    this.appliedRid = preferredRid;
    this.transceiver = null;
    this.closed = false;
    this.attempts = 0;
    this.retryAt = 0;
    this.wake = wake;
  }

  get track() {
    return this.transceiver?.receiver.track ?? null;
  }

  /** Ask for one simulcast layer; "" lets the server choose by bandwidth. */
  setPreferredRid(rid) {
    this.preferredRid = rid;
    this.wake();
  }

  close() {
    this.closed = true;
    this.wake();
  }
}

/**
 * Dispatches "statechange". `state` is one of
 *   idle          nothing is published or pulled, so there is no session
 *   connecting    the first session is being set up
 *   connected     media can flow
 *   reconnecting  the session or its transport was lost; another one is being set up
 *   unreachable   the server does not answer; asked again and again
 *   closed        `close()` was called
 */
export class RealtimeClient extends EventTarget {
  #prefix;
  #session = null;
  #publications = new Set();
  #subscriptions = new Set();
  #wakeLoop = null;
  #wakePending = false;
  #everConnected = false;
  #closing = new AbortController();

  constructor({ prefix = "/partytracks" } = {}) {
    super();
    this.#prefix = prefix;
    this.state = "idle";
    this.#run();
  }

  get peerConnection() {
    return this.#session?.connection ?? null;
  }

  push(track, { sendEncodings } = {}) {
    const publication = new Publication(track, { sendEncodings, wake: () => this.#wake() });
    this.#publications.add(publication);
    this.#wake();
    return publication;
  }

  pull(address, { preferredRid } = {}) {
    const subscription = new Subscription(address, { preferredRid, wake: () => this.#wake() });
    this.#subscriptions.add(subscription);
    this.#wake();
    return subscription;
  }

  /** Ask the server whether the session still exists: quicker than waiting for the transport to time out. */
  async check() {
    const session = this.#session;
    if (!session || session.lost) return;
    try {
      await this.#fetch("GET", `/sessions/${session.id}`);
    } catch (error) {
      if (error instanceof ApiError && !error.transient) this.#lose(session);
    }
  }

  close() {
    this.#closing.abort();
    this.#wake();
  }

  get #isConnected() {
    return this.peerConnection?.connectionState === "connected";
  }

  get #closed() {
    return this.#closing.signal.aborted;
  }

  // ---- the loop ----

  async #run() {
    let attempts = 0;
    while (!this.#closed) {
      try {
        this.#forgetUnused();
        if (this.#publications.size || this.#subscriptions.size) {
          this.#session ??= await this.#open();
          await this.#reconcile(this.#session);
        }
        attempts = 0;
        await this.#idle(this.#untilNextRetry());
      } catch (error) {
        if (this.#closed) break;
        if (!(error instanceof ApiError)) console.warn("realtime:", error);
        this.#session && this.#lose(this.#session);
        await sleep(backoff(attempts++));
      }
      if (this.#session?.lost) this.#drop();
    }
    this.#drop();
    this.#setState("closed");
  }

  /** One pass over everything that differs from what is wanted; each step is one request, or an offer and its answer. */
  async #reconcile(session) {
    const now = performance.now();
    const all = [...this.#publications, ...this.#subscriptions];
    const due = (wanted) => !wanted.closed && !wanted.transceiver && wanted.retryAt <= now;
    const steps = [
      [all.filter((item) => item.closed && item.transceiver), (batch) => this.#close(session, batch)],
      [[...this.#publications].filter(due), (batch) => this.#publish(session, batch)],
      [[...this.#subscriptions].filter(due), (batch) => this.#subscribe(session, batch)],
      [[...this.#subscriptions].filter(layerChanged), (batch) => this.#update(session, batch)],
    ];
    for (const [items, step] of steps) {
      for (let start = 0; start < items.length && !session.lost && !this.#closed; start += BATCH) {
        await step(items.slice(start, start + BATCH));
      }
    }
  }

  /** What was closed before the session had it, or after the session was lost, needs no request. */
  #forgetUnused() {
    for (const items of [this.#publications, this.#subscriptions]) {
      for (const item of items) if (item.closed && !item.transceiver) items.delete(item);
    }
  }

  #wake() {
    this.#wakePending = true;
    this.#wakeLoop?.();
  }

  async #idle(ms) {
    if (!this.#wakePending) {
      let timer;
      await new Promise((resolve) => {
        this.#wakeLoop = resolve;
        if (ms < Infinity) timer = setTimeout(resolve, ms);
      });
      clearTimeout(timer);
      this.#wakeLoop = null;
    }
    this.#wakePending = false;
  }

  #untilNextRetry() {
    const waiting = [...this.#publications, ...this.#subscriptions].filter((item) => !item.closed && !item.transceiver);
    return Math.max(0, Math.min(...waiting.map((item) => item.retryAt)) - performance.now());
  }

  // ---- sessions ----

  async #open() {
    if (this.state === "idle") this.#setState("connecting");
    const [{ sessionId }, { iceServers }] = await Promise.all([
      this.#call("POST", "/sessions/new"),
      this.#call("GET", "/generate-ice-servers"),
    ]);
    const connection = new RTCPeerConnection({ iceServers, bundlePolicy: "max-bundle" });
    const session = { id: sessionId, connection, lost: false, timer: undefined };
    const changed = () => this.#connectionChanged(session);
    connection.addEventListener("connectionstatechange", changed);
    connection.addEventListener("iceconnectionstatechange", changed);
    return session;
  }

  #connectionChanged(session) {
    if (session !== this.#session || session.lost) return;
    const states = [session.connection.connectionState, session.connection.iceConnectionState];
    if (states.includes("failed") || states.includes("closed")) this.#lose(session);
    else if (states.includes("disconnected")) {
      session.timer ??= setTimeout(() => this.#lose(session), DISCONNECTED_LIMIT_MS);
      this.#setState("reconnecting");
    } else {
      clearTimeout(session.timer);
      session.timer = undefined;
      if (states[0] === "connected") this.#setState("connected");
    }
  }

  #lose(session) {
    session.lost = true;
    clearTimeout(session.timer);
    if (!this.#closed && this.state !== "unreachable") this.#setState("reconnecting");
    this.#wake();
  }

  #drop() {
    const session = this.#session;
    this.#session = null;
    if (!session) return;
    session.lost = true;
    clearTimeout(session.timer);
    session.connection.close();
    for (const item of [...this.#publications, ...this.#subscriptions]) {
      item.transceiver = null;
      item.attempts = item.retryAt = 0;
    }
    for (const publication of this.#publications) publication.sessionId = null;
  }

  #setState(state) {
    if (state === "connected") this.#everConnected = true;
    if (state === "reconnecting" && !this.#everConnected) state = "connecting";
    if (state === this.state) return;
    this.state = state;
    this.dispatchEvent(new Event("statechange"));
  }

  // ---- steps ----

  async #publish(session, publications) {
    const { connection } = session;
    for (const publication of publications) {
      const init = { direction: "sendonly" };
      if (publication.sendEncodings) init.sendEncodings = publication.sendEncodings;
      publication.transceiver = connection.addTransceiver(publication.track, init);
    }
    const answer = await this.#offer(session, "POST", "tracks/new", () => ({
      tracks: publications.map(({ transceiver, trackName }) => ({ location: "local", mid: transceiver.mid, trackName })),
    }));
    for (const publication of publications) {
      const result = answer.tracks.find(({ mid }) => mid === publication.transceiver.mid);
      if (!result || result.errorCode) throw new Error(`not published: ${result?.errorDescription ?? "no result"}`);
      publication.sessionId = session.id;
      publication.dispatchEvent(new Event("published"));
    }
  }

  async #subscribe(session, subscriptions) {
    const answer = await this.#call("POST", `/sessions/${session.id}/tracks/new`, {
      tracks: subscriptions.map(({ sessionId, trackName, preferredRid }) => ({
        location: "remote",
        sessionId,
        trackName,
        ...(preferredRid && { simulcast: { preferredRid } }),
      })),
    });
    if (answer.requiresImmediateRenegotiation) {
      await session.connection.setRemoteDescription(answer.sessionDescription);
      await session.connection.setLocalDescription();
      await this.#call("PUT", `/sessions/${session.id}/renegotiate`, {
        sessionDescription: description(session.connection),
      });
    }
    subscriptions.forEach((subscription, index) => {
      const { mid, errorCode } = answer.tracks[index];
      const transceiver = errorCode ? null : session.connection.getTransceivers().find((one) => one.mid === mid);
      if (transceiver) {
        subscription.transceiver = transceiver;
        subscription.appliedRid = subscription.preferredRid;
        subscription.attempts = 0;
        subscription.dispatchEvent(new Event("track"));
      } else {
        // Usually the publisher has not sent anything yet.
        subscription.retryAt = performance.now() + backoff(subscription.attempts++);
      }
    });
  }

  async #update(session, subscriptions) {
    await this.#call("PUT", `/sessions/${session.id}/tracks/update`, {
      tracks: subscriptions.map((subscription) => {
        subscription.appliedRid = subscription.preferredRid;
        const { sessionId, trackName, transceiver, preferredRid } = subscription;
        return { location: "remote", sessionId, trackName, mid: transceiver.mid, simulcast: { preferredRid } };
      }),
    });
  }

  /**
   * Stopping the transceivers frees their media sections for later tracks, so descriptions do not grow.
   *
   * All but one: a browser whose offer ends the section that carries the BUNDLE group builds its transport anew, and
   * every track pauses. That section is emptied instead and stays for as long as the session does.
   */
  async #close(session, items) {
    for (const item of items) {
      this.#publications.delete(item);
      this.#subscriptions.delete(item);
    }
    if (this.#publications.size + this.#subscriptions.size === 0) {
      this.#drop();
      this.#setState("idle");
      return;
    }
    const carrier = bundleCarrier(session.connection);
    const emptied = items.filter(({ transceiver }) => transceiver.mid === carrier);
    const stopped = items.filter(({ transceiver }) => transceiver.mid !== carrier);
    if (emptied.length > 0) {
      await emptied[0].transceiver.sender.replaceTrack(null);
      await this.#call("PUT", `/sessions/${session.id}/tracks/close`, { tracks: [{ mid: carrier }], force: true });
    }
    if (stopped.length > 0) {
      const tracks = stopped.map(({ transceiver }) => ({ mid: transceiver.mid }));
      stopped.forEach(({ transceiver }) => transceiver.stop());
      await this.#offer(session, "PUT", "tracks/close", () => ({ tracks, force: false }));
    }
  }

  /** Send an offer with a request and apply the answer; `fields` is asked once the offer has given out its mids. */
  async #offer(session, method, path, fields) {
    const { connection } = session;
    await connection.setLocalDescription(await connection.createOffer());
    const body = { ...fields(), sessionDescription: description(connection) };
    const answer = await this.#call(method, `/sessions/${session.id}/${path}`, body);
    await connection.setRemoteDescription(answer.sessionDescription);
    return answer;
  }

  // ---- HTTP ----

  /** Repeats what may pass by itself, until it does; throws an `ApiError` for the rest. */
  async #call(method, path, body) {
    for (let attempt = 0; ; attempt++) {
      try {
        const answer = await this.#fetch(method, path, body);
        if (this.state === "unreachable") this.#setState(this.#isConnected ? "connected" : "reconnecting");
        return answer;
      } catch (error) {
        if (this.#closed || (error instanceof ApiError && !error.transient)) throw error;
        if (attempt > 1) this.#setState("unreachable");
        await sleep(backoff(attempt));
      }
    }
  }

  async #fetch(method, path, body) {
    const signal = AbortSignal.any([this.#closing.signal, AbortSignal.timeout(REQUEST_LIMIT_MS)]);
    const init = { method, signal, credentials: "same-origin" };
    if (body) Object.assign(init, { body: JSON.stringify(body), headers: { "content-type": "application/json" } });
    const response = await fetch(this.#prefix + path, init);
    const answer = await response.json().catch(() => ({}));
    if (!response.ok || answer.errorCode) throw new ApiError(response.status, answer);
    return answer;
  }
}

const layerChanged = ({ closed, transceiver, preferredRid, appliedRid }) =>
  !closed && transceiver && preferredRid !== appliedRid;

const bundleCarrier = ({ currentLocalDescription }) => currentLocalDescription?.sdp.match(/^a=group:BUNDLE (\S+)/m)?.[1];

const description = ({ localDescription: { type, sdp } }) => ({ type, sdp });
