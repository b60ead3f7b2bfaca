/** Turns `RTCPeerConnection.getStats()` into the few numbers a person wants, over the time since the last sample. */

/** Loss is shown over this many samples: one lost packet should be seen, and be forgotten again. */
const LOSS_SAMPLES = 10;

export class Meter {
  #connection = null;
  #before = new Map();
  #at = 0;
  #lossIn = [];
  #lossOut = [];

  /**
   * @returns totals (`sentBps`, `receivedBps`, `lossIn` and `lossOut` as fractions, `rttMs`; null where unknown) and
   *   `byMid`: mid → `{ kind, bps, codec, width, height, fps, audioLevel }`.
   */
  async sample(connection) {
    if (connection !== this.#connection) {
      this.#before = new Map();
      this.#lossIn = [];
      this.#lossOut = [];
      this.#connection = connection;
    }
    const report = await connection.getStats();
    const now = performance.now();
    const seconds = this.#at ? (now - this.#at) / 1000 : 1;
    const before = this.#before;
    const since = (entry, field) => Math.max(0, (entry[field] ?? 0) - (before.get(entry.id)?.[field] ?? entry[field] ?? 0));
    const totals = { sentBps: 0, receivedBps: 0, lossIn: null, lossOut: null, rttMs: null, byMid: new Map() };
    const arrived = { received: 0, lost: 0 };
    const sent = { packets: 0, lost: 0 };

    for (const entry of report.values()) {
      if (entry.type === "inbound-rtp") {
        const bps = (since(entry, "bytesReceived") * 8) / seconds;
        totals.receivedBps += bps;
        arrived.received += since(entry, "packetsReceived");
        arrived.lost += since(entry, "packetsLost");
        totals.byMid.set(entry.mid, { ...media(entry, report), bps, audioLevel: entry.audioLevel ?? 0 });
      } else if (entry.type === "outbound-rtp") {
        const bps = (since(entry, "bytesSent") * 8) / seconds;
        totals.sentBps += bps;
        sent.packets += since(entry, "packetsSent");
        sent.lost += since(report.get(entry.remoteId) ?? {}, "packetsLost");
        const known = totals.byMid.get(entry.mid);
        const layer = { ...media(entry, report), bps: bps + (known?.bps ?? 0) };
        // Of several simulcast layers the tile names the largest.
        totals.byMid.set(entry.mid, known && known.width > (layer.width ?? 0) ? { ...known, bps: layer.bps } : layer);
      } else if (entry.type === "transport") {
        const pair = report.get(entry.selectedCandidatePairId);
        if (pair?.currentRoundTripTime !== undefined) totals.rttMs = pair.currentRoundTripTime * 1000;
      }
    }

    totals.lossIn = rolling(this.#lossIn, arrived.lost, arrived.lost + arrived.received);
    totals.lossOut = rolling(this.#lossOut, sent.lost, sent.packets);
    this.#before = new Map([...report.values()].map((entry) => [entry.id, entry]));
    this.#at = now;
    return totals;
  }
}

function media(entry, report) {
  return {
    kind: entry.kind,
    codec: report.get(entry.codecId)?.mimeType.split("/")[1] ?? null,
    width: entry.frameWidth ?? 0,
    height: entry.frameHeight ?? 0,
    fps: entry.framesPerSecond ?? 0,
  };
}

function rolling(samples, lost, all) {
  samples.push([lost, all]);
  if (samples.length > LOSS_SAMPLES) samples.shift();
  const packets = samples.reduce((sum, [, count]) => sum + count, 0);
  return packets > 0 ? samples.reduce((sum, [count]) => sum + count, 0) / packets : null;
}

/** 1234567 → "1.2 Mbit/s". */
export function formatBitrate(bps) {
  if (bps >= 999_500) return `${(bps / 1e6).toFixed(1)} Mbit/s`;
  return `${Math.round(bps / 1e3)} kbit/s`;
}

export const formatLoss = (fraction) => (fraction === null ? "–" : `${(fraction * 100).toFixed(fraction < 0.1 ? 1 : 0)} %`);
export const formatRtt = (ms) => (ms === null ? "–" : ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`);
export const formatSize = ({ width, height, fps }) => (width ? `${width}×${height}${fps ? `, ${Math.round(fps)} fps` : ""}` : "–");
