/** The lobby: choose a room, a name and a source, and enter. Starts everything. */

import { Call } from "./call.js";
import { JoinRefused } from "./room.js";
import { CallView } from "./view.js";

const ADJECTIVES = ["calm", "drowsy", "gentle", "mossy", "quiet", "soft", "still", "warm"];
const ANIMALS = ["badger", "bat", "dormouse", "hamster", "hedgehog", "lemur", "marmot", "wren"];
/** A reload of the tab joins again by itself: kept per tab, gone with it. */
const REMEMBERED = "torpor.call";

const $ = (id) => document.getElementById(id);
const pick = (list) => list[Math.floor(Math.random() * list.length)];

let view = null;

// ---- lobby ----

const form = $("join");

/** One name per browser, made up at the first visit: two tabs of a newcomer meet without agreeing on a room. */
function usualRoom() {
  const room = localStorage.getItem("torpor.room") ?? `${pick(ADJECTIVES)}-${pick(ANIMALS)}`;
  localStorage.setItem("torpor.room", room);
  return room;
}

form.elements.room.value = new URL(location).searchParams.get("room") || usualRoom();
form.elements.name.value = localStorage.getItem("torpor.name") ?? "";
form.addEventListener("submit", (event) => {
  event.preventDefault();
  const { room, name, source } = Object.fromEntries(new FormData(form));
  if (room.trim() && name.trim()) enter({ room: room.trim(), name: name.trim(), source });
});

async function enter(choice) {
  const button = form.querySelector("button");
  button.disabled = true;
  button.textContent = choice.source === "camera" ? "Opening the camera…" : "Joining…";
  $("join-error").hidden = true;
  try {
    view = new CallView(await Call.join(choice), { room: choice.room, onLeave: returnToLobby });
    $("lobby").hidden = true;
    sessionStorage.setItem(REMEMBERED, JSON.stringify(choice));
    localStorage.setItem("torpor.name", choice.name);
  } catch (error) {
    if (!(error instanceof JoinRefused || error instanceof TypeError)) throw error;
    $("join-error").textContent = error instanceof JoinRefused ? error.message : "The server does not answer. Is it running?";
    $("join-error").hidden = false;
  } finally {
    button.disabled = false;
    button.textContent = "Join";
  }
}

function returnToLobby() {
  view = null;
  sessionStorage.removeItem(REMEMBERED);
  $("lobby").hidden = false;
  document.title = "Torpor";
  form.querySelector("button").focus();
}

const remembered = JSON.parse(sessionStorage.getItem(REMEMBERED) ?? "null");
if (remembered) {
  for (const [name, value] of Object.entries(remembered)) form.elements[name].value = value;
  enter(remembered);
} else {
  (form.elements.name.value ? form.querySelector("button") : form.elements.name).focus();
}

window.addEventListener("pagehide", () => view?.call.leave());
window.addEventListener("pageshow", ({ persisted }) => persisted && view && location.reload());
