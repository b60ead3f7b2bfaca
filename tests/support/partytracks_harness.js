// What an application does with partytracks, as functions a test can call by name. The client itself is unmodified.
import { PartyTracks } from "partytracks/client";
import { BehaviorSubject, firstValueFrom, of } from "rxjs";

const client = new PartyTracks();
const pushes = new Map();
const pulls = new Map();

const clean = (metadata) => metadata && JSON.parse(JSON.stringify(metadata));

async function fakeDevice(kind) {
  const stream = await navigator.mediaDevices.getUserMedia({ [kind]: kind === "video" ? { width: 960, height: 540 } : true });
  return stream.getTracks()[0];
}

window.harness = {
  /** Publish a track of `kind`; the observable's latest metadata is what `address` gives. */
  async push(name, kind, sendEncodings) {
    const push = { address: null, emissions: 0 };
    const options = sendEncodings ? { sendEncodings$: of(sendEncodings) } : {};
    push.subscription = client.push(of(await fakeDevice(kind)), options).subscribe((metadata) => {
      push.address = metadata;
      push.emissions += 1;
    });
    pushes.set(name, push);
  },

  address: (name) => clean(pushes.get(name)?.address),

  /** Pull what `address` says and play it, as a page with a <video> would. */
  pull(name, address, preferredRid) {
    const metadata$ = new BehaviorSubject(address);
    const preferredRid$ = new BehaviorSubject(preferredRid);
    const pull = { metadata$, preferredRid$, track: null, emissions: 0 };
    pull.subscription = client.pull(metadata$, { simulcast: { preferredRid$ } }).subscribe((track) => {
      pull.track = track;
      pull.emissions += 1;
      pull.element ??= Object.assign(document.createElement(track.kind), { autoplay: true, muted: track.kind === "video" });
      pull.element.srcObject = new MediaStream([track]);
    });
    pulls.set(name, pull);
  },

  /** The publisher has a new address, as after a reconnect. */
  repull: (name, address) => pulls.get(name).metadata$.next(address),

  prefer: (name, rid) => pulls.get(name).preferredRid$.next(rid),

  pulledTrack: (name) => pulls.get(name)?.track?.id ?? null,

  close(name) {
    (pushes.get(name) ?? pulls.get(name)).subscription.unsubscribe();
    pushes.delete(name);
    pulls.delete(name);
  },

  /** The connection is gone from one moment to the next; closing does not fire the event that a failure does. */
  async breakTransport() {
    const connection = await firstValueFrom(client.peerConnection$);
    connection.close();
    connection.dispatchEvent(new Event("connectionstatechange"));
  },

  signalingState: async () => (await firstValueFrom(client.peerConnection$)).signalingState,

  /** Every answer the API gave to calls of this path's last step. */
  answers: (step) =>
    client.history.entries.filter(({ type, endpoint }) => type === "response" && endpoint.includes(step)).map(({ body }) => body),
};
