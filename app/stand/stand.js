// What the browser does at the stand: see browser.py. Listeners are the window's, set once; `data` is of the latest run.
const WARNED = 15; // seconds before the page starts anew, at most a third of its rest

function start() {
  const state = (window.sgmStand = { data: {}, touched: performance.now(), leaving: false });
  state.veil = Object.assign(document.createElement("div"), { className: "veil", hidden: true });
  state.veil.setAttribute("role", "alert");
  document.body.append(state.veil);
  const touch = () => {
    state.touched = performance.now();
    rest(state);
  };
  for (const name of ["pointerdown", "keydown", "wheel", "touchmove"]) document.addEventListener(name, touch, { capture: true, passive: true });
  document.addEventListener("click", (event) => choose(event.target.closest("[data-source]")?.dataset.source));
  document.addEventListener("change", (event) => take(event, state), true);
  document.documentElement.classList.toggle("camera", "capture" in document.createElement("input"));
  setInterval(() => rest(state), 500);
  return state;
}

function choose(source) {
  const input = document.querySelector('[data-testid="stFileUploader"] input[type="file"]');
  if (!source || !input) return;
  input.accept = "image/*";
  input.toggleAttribute("capture", source === "camera");
  if (source === "camera") input.setAttribute("capture", "environment");
  input.click();
}

function take(event, state) {
  if (!event.target.matches?.('[data-testid="stFileUploader"] input[type="file"]') || !event.target.files.length) return;
  if (event.target.files[0].size <= state.data.megabytes * 2 ** 20) return veil(state, state.data.said.reading, "", true);
  event.stopImmediatePropagation();
  event.target.value = "";
  veil(state, state.data.unreadable);
}

// reading: a picture is on its way, so a touch does not take the veil away.
function veil(state, title = "", text = "", reading = false) {
  Object.assign(state, { reading });
  const shown = [title, text].join("\n");
  if (state.shown !== shown) {
    state.veil.replaceChildren(Object.assign(document.createElement("b"), { textContent: title }), Object.assign(document.createElement("p"), { textContent: text }));
    state.shown = shown;
  }
  state.veil.hidden = !title;
}

async function rest(state) {
  const { data, reading } = state;
  const connected = document.querySelector('.stApp[data-test-connection-state="CONNECTED"]');
  const rested = (performance.now() - state.touched) / 1000;
  const left = data.rest - rested;
  if (!connected) state.lost ??= performance.now();
  else state.lost = undefined;
  if (state.lost && performance.now() - state.lost > 1500) return veil(state, data.said.moment);
  if (reading) return rested > 60 && veil(state);
  if (data.rest && left <= 0) return leave(state);
  if (data.rest && left < Math.min(WARNED, data.rest / 3)) return veil(state, data.said.still_there, data.said.touch);
  if (!(rested < 4 && state.shown?.startsWith(data.unreadable))) veil(state);
}

// A new page is a new visit: nothing of the one before is left in it. While there is no server, the old one stays.
async function leave(state) {
  remember("");
  if (state.leaving) return;
  state.leaving = true;
  try {
    if ((await fetch("/_stcore/health", { cache: "no-store" })).ok) location.replace("/");
  } catch {
    // once more at the next look
  }
  setTimeout(() => (state.leaving = false), 5000);
}

function remember(token) {
  const { cookie } = window.sgmStand.data;
  document.cookie = `${cookie}=${token}; path=/; SameSite=Strict${token ? "" : "; max-age=0"}`;
}

export default function ({ data }) {
  const state = window.sgmStand ?? start();
  const moved = state.data.stage !== data.stage || state.data.token !== data.token;
  Object.assign(state, { data });
  if (moved) {
    state.touched = performance.now();
    state.reading = false;
    document.querySelector(".stMain")?.scrollTo(0, 0);
  }
  remember(data.token);
  document.documentElement.lang = data.language;
  for (const mood of document.querySelectorAll('.st-key-moods button, .st-key-languages button'))
    mood.setAttribute("aria-pressed", mood.getAttribute("kind") === "primary");
  for (const video of document.querySelectorAll("video")) video.muted = true, video.play().catch(() => {});
  rest(state);
}
