/**
 * Where the pictures and sounds of this page come from: camera and microphone, the screen, or a drawn stand-in.
 *
 * Every source is `{ kind, audio, video, notice, stop }`; `notice` is a sentence for the person, or null.
 */

const CAMERA = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 24, max: 30 } };
const MICROPHONE = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
const SIZE = { width: 640, height: 360 };

/** Camera and microphone, or what there is of them; what is missing is replaced by a stand-in and explained. */
export async function openDevices(name) {
  let notice = null;
  if (!navigator.mediaDevices?.getUserMedia) {
    notice = "This page is not served over HTTPS, so the browser offers no camera. You appear as a test picture.";
    return { ...openSynthetic(name), notice };
  }
  const attempts = [
    [{ audio: MICROPHONE, video: CAMERA }, null],
    [{ audio: MICROPHONE }, "No camera could be used. The others see a test picture and hear your microphone."],
    [{ video: CAMERA }, "No microphone could be used. The others see your camera and hear a test tone."],
  ];
  let reason;
  for (const [constraints, missing] of attempts) {
    try {
      const stream = await navigator.mediaDevices.getUserMedia(constraints);
      return complete(stream, name, missing);
    } catch (error) {
      reason ??= error;
      if (error.name === "NotAllowedError") break;
    }
  }
  return { ...openSynthetic(name), notice: explain(reason) };
}

/** A drawn picture and a soft tone: needs no device and no permission. */
export function openSynthetic(name) {
  const picture = drawnTrack(24, (context, seconds) => drawWaves(context, seconds, name));
  const tone = toneTrack(name);
  return {
    kind: "synthetic",
    notice: null,
    audio: tone.track,
    video: picture.track,
    stop: () => (picture.stop(), tone.stop()),
  };
}

/** The camera alone, for turning it on again. Throws what `getUserMedia` throws. */
export async function openCamera() {
  const [track] = (await navigator.mediaDevices.getUserMedia({ video: CAMERA })).getVideoTracks();
  return { track, stop: () => track.stop() };
}

/** The waves alone. */
export const openPicture = (name) => drawnTrack(24, (context, seconds) => drawWaves(context, seconds, name));

/** One black frame a second in place of a camera: the server collects tracks that send nothing for 30 s. */
export function openBlack() {
  return drawnTrack(1, (context, seconds) => {
    context.fillStyle = seconds % 2 < 1 ? "#000000" : "#010101";
    context.fillRect(0, 0, SIZE.width, SIZE.height);
  });
}

/** The screen, a window or a tab, as the person picks it. Throws what `getDisplayMedia` throws. */
export async function openScreen() {
  const [track] = (await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { max: 15 } } })).getVideoTracks();
  track.contentHint = "detail";
  return { track, stop: () => track.stop() };
}

/** A sentence for an error of `getUserMedia` or `getDisplayMedia`. */
export function explain(error) {
  const standIn = "You appear as a test picture instead.";
  switch (error?.name) {
    case "NotAllowedError":
      return `The browser was not allowed to use your camera and microphone. ${standIn}`;
    case "NotFoundError":
    case "OverconstrainedError":
      return `No camera and no microphone were found. ${standIn}`;
    case "NotReadableError":
    case "AbortError":
      return `Your camera or microphone is in use by another program. ${standIn}`;
    default:
      return `Your camera and microphone could not be opened. ${standIn}`;
  }
}

function complete(stream, name, notice) {
  const [audio] = stream.getAudioTracks();
  const [video] = stream.getVideoTracks();
  const tone = audio ? null : toneTrack(name);
  const picture = video ? null : openPicture(name);
  return {
    kind: video ? "camera" : "synthetic",
    notice,
    audio: audio ?? tone.track,
    video: video ?? picture.track,
    stop: () => {
      stream.getTracks().forEach((track) => track.stop());
      tone?.stop();
      picture?.stop();
    },
  };
}

/** Paced by a worker: neither `requestAnimationFrame` nor the page's timers keep running in a background tab. */
function drawnTrack(framesPerSecond, draw) {
  const canvas = Object.assign(document.createElement("canvas"), SIZE);
  const context = canvas.getContext("2d", { alpha: false });
  const [track] = canvas.captureStream(framesPerSecond).getVideoTracks();
  const ticker = new Worker(new URL("ticker.js", import.meta.url));
  const paint = () => draw(context, performance.now() / 1000);
  ticker.onmessage = paint;
  ticker.postMessage(1000 / framesPerSecond);
  paint();
  return {
    track,
    stop: () => {
      ticker.terminate();
      track.stop();
    },
  };
}

/** The same hue for the same name, everywhere: of dusk, from teal over blue and violet to rose. */
export function hueOf(name) {
  let hash = 7;
  for (const character of name) hash = (hash * 31 + character.codePointAt(0)) % 997;
  return 165 + (hash * 61) % 175;
}

function drawWaves(context, seconds, name) {
  const { width, height } = SIZE;
  const hue = hueOf(name);
  const sky = context.createLinearGradient(0, 0, 0, height);
  sky.addColorStop(0, `hsl(${hue} 34% 24%)`);
  sky.addColorStop(1, `hsl(${(hue + 40) % 360} 42% 44%)`);
  context.fillStyle = sky;
  context.fillRect(0, 0, width, height);

  const moonX = width * (0.5 + 0.36 * Math.sin(seconds / 6));
  const moonY = height * (0.3 + 0.06 * Math.cos(seconds / 4));
  context.fillStyle = `hsl(${(hue + 60) % 360} 70% 88%)`;
  context.beginPath();
  context.arc(moonX, moonY, 34, 0, 2 * Math.PI);
  context.fill();

  for (let layer = 0; layer < 4; layer++) {
    context.fillStyle = `hsl(${(hue + 24 * layer) % 360} 40% ${34 - 6 * layer}% / 0.85)`;
    context.beginPath();
    context.moveTo(0, height);
    for (let x = 0; x <= width; x += 16) {
      const swell = Math.sin(x / (90 - 12 * layer) + seconds * (0.5 + 0.22 * layer) + layer * 1.7);
      context.lineTo(x, height * (0.56 + 0.1 * layer) + swell * (20 - 2 * layer));
    }
    context.lineTo(width, height);
    context.fill();
  }
}

/** A sine that breathes in and out every four seconds, so that it can stay on without being a nuisance. */
function toneTrack(name) {
  const context = new AudioContext();
  const tone = new OscillatorNode(context, { frequency: 180 + (hueOf(name) % 12) * 20 });
  const breath = new OscillatorNode(context, { frequency: 0.25 });
  const loudness = new GainNode(context, { gain: 0.03 });
  const destination = new MediaStreamAudioDestinationNode(context, { channelCount: 1 });
  breath.connect(new GainNode(context, { gain: 0.02 })).connect(loudness.gain);
  tone.connect(loudness).connect(destination);
  tone.start();
  breath.start();
  // Without a gesture, as after a reload, the browser keeps the tone silent until the first one.
  const resume = () => context.resume();
  document.addEventListener("click", resume);
  document.addEventListener("keydown", resume);
  const [track] = destination.stream.getAudioTracks();
  return {
    track,
    stop: () => {
      document.removeEventListener("click", resume);
      document.removeEventListener("keydown", resume);
      track.stop();
      context.close();
    },
  };
}
