/** One tile: a picture with a name on it. Everything shown comes in through `update`, `show` and `measure`. */

import { hueOf } from "./sources.js";
import { formatBitrate } from "./stats.js";

const SPEAKING_LEVEL = 0.06;

export class Tile {
  #stream = new MediaStream();
  #video = document.createElement("video");
  #name = element("span", "name");
  #numbers = element("p", "numbers");
  #muted = icon("i-mic-off");
  #mine;

  /**
   * @param kind "camera" or "screen"
   * @param mine own tiles are never heard, and a camera's picture is mirrored as in a looking-glass
   */
  constructor({ name, kind, mine = false, mirrored = false }) {
    const caption = element("figcaption");
    const initial = element("div", "initial");
    initial.textContent = [...name.trim()][0]?.toUpperCase() ?? "?";
    initial.ariaHidden = "true";
    this.#name.textContent = kind === "screen" ? (mine ? "Your screen" : `${name}’s screen`) : mine ? `${name} (you)` : name;
    this.#muted.setAttribute("aria-label", "muted");
    this.#muted.setAttribute("role", "img");
    this.#muted.toggleAttribute("hidden", true);
    caption.append(this.#muted, this.#name);
    const waiting = element("p", "waiting");
    waiting.textContent = "Waiting for the picture…";

    this.#video.autoplay = true;
    this.#video.playsInline = true;
    this.#mine = mine;
    this.#video.srcObject = this.#stream;
    this.#video.addEventListener("resize", () => this.root.classList.add("flowing"));

    this.root = element("figure", "tile");
    this.root.classList.toggle("mine", mine);
    this.root.classList.toggle("mirrored", mirrored);
    this.root.classList.add(kind);
    this.root.style.setProperty("--hue", hueOf(name));
    this.root.setAttribute("aria-label", this.#name.textContent);
    this.root.append(this.#video, initial, waiting, caption, this.#numbers);
  }

  update({ muted = false, cameraOff = false }) {
    this.#muted.toggleAttribute("hidden", !muted);
    this.root.classList.toggle("dark", cameraOff);
  }

  /** Attach a track in place of the one of its kind; resolves to false when the browser refuses to play it aloud. */
  async show(track) {
    for (const old of this.#stream.getTracks()) if (old.kind === track.kind) this.#stream.removeTrack(old);
    this.#stream.addTrack(track);
    return this.play();
  }

  /** Play aloud, or in silence where the browser wants a gesture first: then it resolves to false. */
  async play() {
    this.#video.muted = this.#mine;
    try {
      await this.#video.play();
    } catch (error) {
      if (error.name !== "NotAllowedError") return true; // replaced by a newer track meanwhile
      this.#video.muted = true;
      this.#video.play().catch(() => {});
      return false;
    }
    return true;
  }

  /** Numbers of the last second; either may be missing. */
  measure({ picture, sound }) {
    const size = picture?.width ? `${picture.width}×${picture.height} · ` : "";
    this.#numbers.textContent = picture ? size + formatBitrate(picture.bps + (sound?.bps ?? 0)) : "";
    this.root.classList.toggle("speaking", (sound?.audioLevel ?? 0) > SPEAKING_LEVEL);
  }

  remove() {
    this.#video.srcObject = null;
    this.root.remove();
  }
}

/** Size the tiles so that all are as large as the space allows, in as many columns as that takes. */
export function arrange(container) {
  const count = container.childElementCount;
  const { width, height } = container.getBoundingClientRect();
  if (!count || !width) return;
  const gap = parseFloat(getComputedStyle(container).columnGap) || 0;
  const everythingElse = container.parentElement.getBoundingClientRect().height - height;
  const room = Math.max(window.innerHeight - everythingElse, window.innerHeight * 0.4);
  const inColumns = (columns) => (width - gap * (columns - 1)) / columns;
  let best = 0;
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    const byHeight = ((room - gap * (rows - 1)) / rows) * (16 / 9);
    best = Math.max(best, Math.min(inColumns(columns), byHeight));
  }
  // Readable tiles that need scrolling beat stamps that do not.
  if (best < 240) best = inColumns(width < 480 ? 1 : 2);
  container.style.setProperty("--tile-width", `${Math.floor(best)}px`);
}

function element(tag, className = "") {
  return Object.assign(document.createElement(tag), { className });
}

function icon(id) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#${id}`);
  svg.append(use);
  return svg;
}
