/** The room as a person sees it: tiles, buttons, numbers. What happens behind them is in `call.js`. */

import { formatBitrate, formatLoss, formatRtt, formatSize, Meter } from "./stats.js";
import { arrange, Tile } from "./tiles.js";

const STATES = {
  connecting: "Connecting…",
  connected: "Connected",
  reconnecting: "Reconnecting…",
  unreachable: "The server does not answer",
  closed: "Left",
};

const $ = (id) => document.getElementById(id);

export class CallView {
  #tiles = new Map();
  #meter = new Meter();
  #own;
  #ownScreen = null;
  #timer;
  #listening = new AbortController();
  #onLeave;

  constructor(call, { room, onLeave }) {
    this.call = call;
    this.#onLeave = onLeave;
    const { signal } = this.#listening;
    const on = (target, type, handler) => target.addEventListener(type, handler, { signal });

    history.replaceState(null, "", `?${new URLSearchParams({ room })}`);
    document.title = `${room} · Torpor`;
    $("room-title").textContent = room;
    $("call").hidden = false;
    $("room-title").focus();

    this.#own = new Tile({ name: call.name, kind: "camera", mine: true, mirrored: call.fromCamera });
    this.#own.show(call.picture);
    $("tiles").append(this.#own.root);

    on(call, "state", () => this.#showState());
    on(call, "presence", () => this.#showPresence());
    on(call, "people", () => this.#showPeople());
    on(call, "notice", ({ detail }) => this.#showNotice(detail));

    on($("mic"), "click", () => call.setMuted(!call.muted));
    on($("camera"), "click", () => this.#toggleCamera());
    on($("screen"), "click", () => (call.screen ? call.stopSharing() : call.shareScreen()));
    on($("saver"), "click", () => call.setSaving(!call.saving));
    on($("leave"), "click", () => this.#leave());
    on($("copy-link"), "click", () => this.#copyLink());
    on($("unblock"), "click", () => this.#unblock());
    on($("notice").querySelector("button"), "click", () => ($("notice").hidden = true));
    on(document, "keydown", (event) => this.#shortcut(event));
    const observer = new ResizeObserver(() => arrange($("tiles")));
    observer.observe($("tiles"));
    signal.addEventListener("abort", () => observer.disconnect());

    if (call.notice) this.#showNotice(call.notice);
    this.#showState();
    this.#showPresence();
    this.#showPeople();
    this.#timer = setInterval(() => this.#measure(), 1000);
  }

  #leave() {
    clearInterval(this.#timer);
    this.#listening.abort();
    this.call.leave();
    for (const { tile } of this.#tiles.values()) tile.remove();
    this.#own.remove();
    this.#ownScreen?.remove();
    for (const id of ["notice", "unblock", "call"]) $(id).hidden = true;
    this.#onLeave();
  }

  // ---- what the call says ----

  #showState() {
    const { state } = this.call;
    $("state").dataset.state = state;
    if ($("state").textContent !== STATES[state]) $("state").textContent = STATES[state];
  }

  #showPresence() {
    const { call } = this;
    toggle($("mic"), call.muted, call.muted ? "i-mic-off" : "i-mic");
    toggle($("camera"), call.cameraOff, call.cameraOff ? "i-camera-off" : "i-camera");
    toggle($("screen"), Boolean(call.screen));
    toggle($("saver"), call.saving);
    this.#own.update(call);
    if (call.screen && !this.#ownScreen) {
      this.#ownScreen = new Tile({ name: call.name, kind: "screen", mine: true });
      this.#ownScreen.show(call.screen);
      this.#own.root.after(this.#ownScreen.root);
    } else if (!call.screen) {
      this.#ownScreen?.remove();
      this.#ownScreen = null;
    }
    arrange($("tiles"));
  }

  #showPeople() {
    const present = new Set();
    for (const { memberId, name, muted, cameraOff, subscriptions } of this.call.people) {
      const camera = this.#tile(`${memberId}/camera`, name, "camera", present);
      camera.tile.update({ muted, cameraOff });
      this.#attach(camera, [subscriptions.camera, subscriptions.microphone]);
      if (subscriptions.screen) this.#attach(this.#tile(`${memberId}/screen`, name, "screen", present), [subscriptions.screen]);
    }
    for (const [key, { tile }] of this.#tiles) {
      if (present.has(key)) continue;
      tile.remove();
      this.#tiles.delete(key);
    }
    $("alone").hidden = this.call.people.length > 0;
    arrange($("tiles"));
  }

  #tile(key, name, kind, present) {
    present.add(key);
    if (!this.#tiles.has(key)) {
      const entry = { tile: new Tile({ name, kind }), subscriptions: new Set() };
      $("tiles").append(entry.tile.root);
      this.#tiles.set(key, entry);
    }
    return this.#tiles.get(key);
  }

  #attach(entry, subscriptions) {
    const wanted = new Set(subscriptions.filter(Boolean));
    for (const subscription of wanted) {
      if (entry.subscriptions.has(subscription)) continue;
      const show = async () => {
        if (!(await entry.tile.show(subscription.track))) $("unblock").hidden = false;
      };
      subscription.addEventListener("track", show, { signal: this.#listening.signal });
      if (subscription.track) show();
    }
    entry.subscriptions = wanted;
  }

  async #measure() {
    const connection = this.call.peerConnection;
    if (!connection) return;
    const totals = await this.#meter.sample(connection);
    const numbers = ([...subscriptions]) => {
      const found = subscriptions.map(({ transceiver }) => totals.byMid.get(transceiver?.mid));
      return { picture: found.find((one) => one?.kind === "video"), sound: found.find((one) => one?.kind === "audio") };
    };
    for (const { tile, subscriptions } of this.#tiles.values()) tile.measure(numbers(subscriptions));
    const picture = totals.byMid.get(this.call.midOf("camera"));
    this.#own.measure({ picture, sound: totals.byMid.get(this.call.midOf("microphone")) });
    this.#ownScreen?.measure({ picture: totals.byMid.get(this.call.midOf("screen")) });

    const codecs = new Set([...totals.byMid.values()].map(({ codec }) => codec).filter(Boolean));
    put("sent", formatBitrate(totals.sentBps));
    put("received", formatBitrate(totals.receivedBps));
    put("rtt", formatRtt(totals.rttMs));
    put("loss-out", formatLoss(totals.lossOut));
    put("loss-in", formatLoss(totals.lossIn));
    put("codecs", [...codecs].join(", ") || "–");
    put("size", formatSize(picture ?? {}));
    $("stats-summary").textContent = `↑ ${formatBitrate(totals.sentBps)}  ↓ ${formatBitrate(totals.receivedBps)}`;
  }

  // ---- what the person does ----

  async #toggleCamera() {
    $("camera").disabled = true;
    await this.call.setCameraOff(!this.call.cameraOff);
    $("camera").disabled = false;
    this.#own.show(this.call.picture);
  }

  async #copyLink() {
    try {
      await navigator.clipboard.writeText(location.href);
      $("copy-link").lastElementChild.textContent = "Copied";
      setTimeout(() => ($("copy-link").lastElementChild.textContent = "Copy link"), 2000);
    } catch {
      this.#showNotice(`The link to this room: ${location.href}`);
    }
  }

  #unblock() {
    $("unblock").hidden = true;
    for (const { tile } of this.#tiles.values()) tile.play();
  }

  #shortcut({ key, target, ctrlKey, metaKey, altKey }) {
    if (ctrlKey || metaKey || altKey || target.matches("input, textarea")) return;
    const id = { m: "mic", v: "camera", s: "screen", d: "saver" }[key.toLowerCase()];
    if (id) $(id).click();
  }

  #showNotice(text) {
    $("notice").querySelector("p").textContent = text;
    $("notice").hidden = false;
  }
}

function toggle(button, pressed, iconId) {
  button.ariaPressed = String(pressed);
  if (iconId) button.querySelector("use").setAttribute("href", `#${iconId}`);
}

function put(name, text) {
  document.querySelector(`[data-stat="${name}"]`).textContent = text;
}
