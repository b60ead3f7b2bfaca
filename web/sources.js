/**
 * Where the pictures and sounds of this page come from: camera and microphone, the screen, or a drawn stand-in.
 *
 * One source is `{ track, stop }`. Camera and microphone, or their stand-ins, come as `{ audio, video, fromCamera,
 * notice }`, where `notice` is a sentence for the person, or null.
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
  return { audio: openTone(name), video: openPicture(name), fromCamera: false, notice: null };
}

/** The camera alone, for turning it on again. Throws what `getUserMedia` throws. */
export async function openCamera() {
  return fromDevice((await navigator.mediaDevices.getUserMedia({ video: CAMERA })).getVideoTracks()[0]);
}

/** Waves under a wandering moon, in the colours of the name. */
export const openPicture = (name) => draw(24, (context, seconds) => drawWaves(context, seconds, name));

/** One black frame a second in place of a camera: the server collects tracks that send nothing for 30 s. */
export function openBlack() {
  return draw(1, (context, seconds) => {
    context.fillStyle = seconds % 2 < 1 ? "#000000" : "#010101";
    context.fillRect(0, 0, SIZE.width, SIZE.height);
  });
}

/** The screen, a window or a tab, as the person picks it. Throws what `getDisplayMedia` throws. */
export async function openScreen() {
  const stream = await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { max: 15 } } });
  const screen = fromDevice(stream.getVideoTracks()[0]);
  screen.track.contentHint = "detail";
  return screen;
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

const fromDevice = (track) => ({ track, stop: () => track.stop() });

function complete(stream, name, notice) {
  const [audio] = stream.getAudioTracks();
  const [video] = stream.getVideoTracks();
  return {
    audio: audio ? fromDevice(audio) : openTone(name),
    video: video ? fromDevice(video) : openPicture(name),
    fromCamera: Boolean(video),
    notice,
  };
}

/** Paced by a worker: neither `requestAnimationFrame` nor the page's timers keep running in a background tab. */
function draw(framesPerSecond, drawFrame) {
  const canvas = Object.assign(document.createElement("canvas"), SIZE);
  const context = canvas.getContext("2d", { alpha: false });
  const [track] = canvas.captureStream(framesPerSecond).getVideoTracks();
  const ticker = new Worker(new URL("ticker.js", import.meta.url));
  const paint = () => drawFrame(context, performance.now() / 1000);
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
  let hash = 2166136261;
  for (const character of name) hash = Math.imul(hash ^ character.codePointAt(0), 16777619) >>> 0;
  return 165 + (((hash ^ (hash >>> 15)) >>> 0) % 175);
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
export function openTone(name) {
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
