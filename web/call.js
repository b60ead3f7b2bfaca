/**
 * One person in one room: joins what the room says (who has which tracks) with the media client (publish and pull).
 *
 * Dispatches "state" (`state`), "people" (`people`), "presence" (own mute, camera, screen) and "notice" (a sentence).
 */

import { RealtimeClient } from "./realtime.js";
import { Room } from "./room.js";
import { explain, openBlack, openCamera, openDevices, openPicture, openScreen, openSynthetic } from "./sources.js";

/**
 * Simulcast layers of a camera; their names sort from best to worst, as the server expects. Of a small picture browsers
 * send two layers at most and drop the last ones, so it gets two to begin with.
 */
const LARGE_PICTURE = [
  { rid: "f", maxBitrate: 1_500_000 },
  { rid: "h", maxBitrate: 400_000, scaleResolutionDownBy: 2 },
  { rid: "q", maxBitrate: 120_000, scaleResolutionDownBy: 4 },
];
const SMALL_PICTURE = [
  { rid: "f", maxBitrate: 700_000 },
  { rid: "q", maxBitrate: 150_000, scaleResolutionDownBy: 2 },
];
const LARGE_WIDTH = 960;
const SMALLEST_LAYER = "q";
const SCREEN_ENCODING = [{ maxBitrate: 2_500_000 }];

export class Call extends EventTarget {
  #room;
  #client = new RealtimeClient();
  #audio;
  #video;
  #published = new Map();
  #subscriptions = new Map();
  #screen = null;
  #saving = false;

  /** Open the sources, enter the room, publish. Throws what `Room.join` throws. */
  static async join({ room, name, source }) {
    const call = new Call(room, name, source === "camera" ? await openDevices(name) : openSynthetic(name));
    try {
      await call.#room.join();
    } catch (error) {
      call.leave();
      throw error;
    }
    return call;
  }

  constructor(room, name, source) {
    super();
    this.name = name;
    this.muted = false;
    this.cameraOff = false;
    this.people = [];
    this.fromCamera = source.fromCamera;
    this.notice = source.notice;
    this.#audio = source.audio;
    this.#video = source.video;
    this.#room = new Room(room, name);
    this.#room.addEventListener("members", () => this.#membersChanged());
    this.#room.addEventListener("offline", () => this.dispatchEvent(new Event("state")));
    this.#room.addEventListener("online", () => {
      // The server may have restarted and forgotten the session: ask, rather than wait for timeouts.
      this.#client.check();
      this.dispatchEvent(new Event("state"));
    });
    this.#client.addEventListener("statechange", () => this.dispatchEvent(new Event("state")));
    const { width } = source.video.track.getSettings();
    this.#publish("camera", source.video.track, width >= LARGE_WIDTH ? LARGE_PICTURE : SMALL_PICTURE);
    this.#publish("microphone", source.audio.track);
  }

  get state() {
    return this.#client.state === "connected" && !this.#room.online ? "unreachable" : this.#client.state;
  }

  get peerConnection() {
    return this.#client.peerConnection;
  }

  /** What the own camera tile shows. */
  get picture() {
    return this.#video.track;
  }

  /** The screen's track while it is shared, else null. */
  get screen() {
    return this.#screen?.track ?? null;
  }

  get saving() {
    return this.#saving;
  }

  midOf(source) {
    return this.#published.get(source)?.transceiver?.mid ?? null;
  }

  leave() {
    this.#room.leave();
    this.#client.close();
    for (const source of [this.#audio, this.#video, this.#screen]) source?.stop();
  }

  // ---- own tracks ----

  setMuted(muted) {
    this.muted = muted;
    // A disabled track sends silence, so others need no negotiation and the server sees it alive.
    this.#audio.track.enabled = !muted;
    this.#announce();
  }

  /** Off means off: the device is released and a black picture takes its place. */
  async setCameraOff(off) {
    const before = this.#video;
    this.#video = off ? openBlack() : await this.#openPicture();
    this.cameraOff = off;
    this.#announce();
    await this.#published.get("camera").replaceTrack(this.#video.track);
    before.stop();
  }

  async #openPicture() {
    if (!this.fromCamera) return openPicture(this.name);
    try {
      return await openCamera();
    } catch (error) {
      this.dispatchEvent(new CustomEvent("notice", { detail: explain(error) }));
      return openPicture(this.name);
    }
  }

  async shareScreen() {
    try {
      const screen = await openScreen();
      this.#screen = screen;
      screen.track.addEventListener("ended", () => this.stopSharing());
      this.#publish("screen", screen.track, SCREEN_ENCODING);
      this.dispatchEvent(new Event("presence"));
    } catch (error) {
      if (error.name === "NotAllowedError") return; // the person changed their mind
      this.dispatchEvent(new CustomEvent("notice", { detail: "This browser cannot share a screen here." }));
    }
  }

  stopSharing() {
    if (!this.#screen) return;
    this.#screen.stop();
    this.#screen = null;
    this.#published.get("screen").close();
    this.#published.delete("screen");
    this.#announce();
  }

  /** Ask for the smallest layer of every camera, or let the server choose by bandwidth. */
  setSaving(saving) {
    this.#saving = saving;
    for (const { subscription, source } of this.#subscriptions.values()) {
      if (source === "camera") subscription.setPreferredRid(this.#ridFor(source));
    }
    this.dispatchEvent(new Event("presence"));
  }

  #ridFor(source) {
    return this.#saving && source === "camera" ? SMALLEST_LAYER : "";
  }

  #publish(source, track, sendEncodings) {
    const publication = this.#client.push(track, { sendEncodings });
    publication.addEventListener("published", () => this.#announce());
    this.#published.set(source, publication);
  }

  #announce() {
    const tracks = [];
    for (const [source, { address, kind }] of this.#published) if (address) tracks.push({ ...address, kind, source });
    this.#room.announce({ tracks, muted: this.muted, cameraOff: this.cameraOff });
    this.dispatchEvent(new Event("presence"));
  }

  // ---- the others' tracks ----

  #membersChanged() {
    const others = this.#room.members.filter(({ memberId }) => memberId !== this.#room.memberId);
    const wanted = new Map();
    for (const { tracks } of others) for (const track of tracks) wanted.set(keyOf(track), track);
    for (const [key, { subscription }] of this.#subscriptions) {
      if (wanted.has(key)) continue;
      subscription.close();
      this.#subscriptions.delete(key);
    }
    for (const [key, track] of wanted) {
      if (this.#subscriptions.has(key)) continue;
      const subscription = this.#client.pull(track, { preferredRid: this.#ridFor(track.source) });
      this.#subscriptions.set(key, { subscription, source: track.source });
    }
    this.people = others.map((member) => ({ ...member, subscriptions: this.#subscriptionsOf(member) }));
    this.dispatchEvent(new Event("people"));
  }

  #subscriptionsOf({ tracks }) {
    return Object.fromEntries(tracks.map((track) => [track.source, this.#subscriptions.get(keyOf(track)).subscription]));
  }
}

const keyOf = ({ sessionId, trackName }) => `${sessionId}/${trackName}`;
