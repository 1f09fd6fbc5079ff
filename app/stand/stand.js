// What the browser does at the stand: see browser.py. Listeners are the window's, set once; `data` is of the latest run.
const WARNED = 15; // seconds before the page starts anew, at most a third of its rest
const SLOWEST = 60_000; // milliseconds until a picture that is sent is given up

function start() {
  const state = (window.sgmStand = { data: {}, touched: performance.now(), connected: performance.now() });
  state.veil = Object.assign(document.createElement("div"), { className: "veil", hidden: true });
  state.veil.setAttribute("role", "alert");
  state.veil.append(document.createElement("b"), document.createElement("p"));
  document.body.append(state.veil);
  const touch = () => (state.touched = performance.now());
  for (const name of ["pointerdown", "keydown", "wheel", "touchmove"]) document.addEventListener(name, touch, { capture: true, passive: true });
  document.addEventListener("click", (event) => choose(event.target.closest("[data-source]")?.dataset.source));
  document.addEventListener("change", (event) => take(event, state), true);
  document.documentElement.classList.toggle("camera", "capture" in document.createElement("input"));
  setInterval(() => {
    look(state);
    describe();
  }, 500);
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
  if (event.target.files[0].size <= state.data.megabytes * 2 ** 20) {
    state.reading = performance.now();
    return look(state);
  }
  event.stopImmediatePropagation();
  event.target.value = "";
  state.now.setTriggerValue("refused", true);
}

function veil(state, title = "", text = "") {
  const [head, body] = state.veil.children;
  if (head.textContent !== title) head.textContent = title;
  if (body.textContent !== text) body.textContent = text;
  state.veil.hidden = !title;
}

function look(state) {
  const { data, reading } = state, now = performance.now();
  const isConnected = document.querySelector('.stApp[data-test-connection-state="CONNECTED"]');
  if (isConnected) state.connected = now;
  if (!state.veil.hidden && now - state.touched < 400) return; // or what lies below would be clicked
  const left = data.rest - (now - state.touched) / 1000;
  if (now - state.connected > 1500) Object.assign(state, { mark: `${now}`, asked: 0 });
  if (state.mark && state.mark !== data.mark) { // until the server sends it back, touches would be lost
    if (isConnected && now - state.asked > 4000) {
      state.asked = now;
      state.now.setTriggerValue("mark", state.mark);
    }
    return veil(state, data.said.moment);
  }
  if (data.rest && left <= 0) return leave(state);
  if (reading && now - reading < SLOWEST) return veil(state, data.said.reading);
  if (data.rest && left < Math.min(WARNED, data.rest / 3)) return veil(state, data.said.still_there, data.said.touch);
  veil(state);
}

function describe() {
  for (const button of document.querySelectorAll(".st-key-moods button, .st-key-languages button"))
    button.setAttribute("aria-pressed", button.getAttribute("kind") === "primary");
  for (const video of document.querySelectorAll("video")) if (video.paused) video.play().catch(() => {});
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

export default function (component) {
  const { data } = component, state = window.sgmStand ?? start();
  const moved = state.data.stage !== data.stage;
  Object.assign(state, { data, now: component });
  if (moved) {
    state.touched = performance.now();
    state.reading = 0;
    document.querySelector(".stMain")?.scrollTo(0, 0);
  }
  remember(data.token);
  document.documentElement.lang = data.language;
  look(state);
  describe();
}
