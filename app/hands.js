// What the browser does for the page: see hands.py. Listeners are the window's, set once; `now` is of the latest run.
const uploader = () => document.querySelector('[data-testid="stFileUploader"] input[type="file"]');
const isZip = (file) => /\.zip$/i.test(file.name);
const limits = () => window.sgmHands.now.data.limits;
const tooLarge = (file) => file.size > (isZip(file) ? limits().zip : limits().picture) * 2 ** 20;
const tooMany = (files) => files.length > limits().files;
const areSeveral = (files) => !uploader().multiple && (files.length > 1 || isZip(files[0]));

// A clip's frames: frame9 before frame10.
const inOrder = (files) => [...files].sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));

function give(files) {
  const state = window.sgmHands;
  if (state.now.data.frames) files = inOrder(files).slice(0, limits().files);
  if (tooMany(files) || areSeveral(files)) {
    state.carried = tooMany(files) ? null : files; // to the page Batch, whose uploader takes several
    return state.now.setTriggerValue("several", files.length);
  }
  const large = files.filter(tooLarge);
  if (large.length) state.now.setTriggerValue("refused", large.map((file) => file.name).join(", "));
  const given = new DataTransfer();
  for (const file of files) tooLarge(file) || given.items.add(file);
  if (!given.files.length) return;
  uploader().files = given.files;
  uploader().dispatchEvent(new Event("change", { bubbles: true }));
}

// The files of a folder and of the folders in it, without hidden ones; no more than one too many. What cannot be read,
// such as a link to nowhere, comes as an empty file, which is told like any other: else the whole drop would be lost.
async function filesIn(entry, found) {
  if (tooMany(found) || entry.name.startsWith(".")) return;
  const lost = () => new File([], entry.name);
  if (entry.isFile) return void found.push(await new Promise((done) => entry.file(done, () => done(lost()))));
  const reader = entry.createReader();
  const more = () => new Promise((done) => reader.readEntries(done, () => (found.push(lost()), done([]))));
  for (let some; (some = await more()).length; ) for (const one of some) await filesIn(one, found);
}

function take(event, files) {
  // Text is pasted and dropped as ever; in a dialog, or on another page, there is no uploader; another one has its own.
  const own = event.target.closest?.('[data-testid="stFileUploader"]');
  if (!files?.length || !uploader() || (own && !own.contains(uploader()))) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  const entries = [...(event.dataTransfer?.items ?? [])].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return give([...files]);
  const found = [];
  Promise.all(entries.map((entry) => filesIn(entry, found))).then(() => found.length && give(found));
}

function giveCarried(state) {
  if (!state.carried || !uploader()?.multiple) return;
  const files = state.carried;
  state.carried = null;
  give(files);
}

function focusStays({ focused: { element, places } }) {
  if (!element || document.activeElement !== document.body) return;
  const isThere = element.isConnected && !element.disabled && (!places.length || element.closest(`.${CSS.escape(places[0])}`));
  if (isThere) return; // it was left on purpose
  // The place itself comes back while the page is drawn; once all is drawn, the nearest one around it that is left.
  const isDrawn = document.querySelector(".stApp").dataset.testScriptState === "notRunning";
  const left = (isDrawn ? places : places.slice(0, 1)).map((place) =>
    document.querySelector(`.${CSS.escape(place)} :is(button, input, a):enabled`));
  left.find(Boolean)?.focus({ preventScroll: true });
}

function describe({ data }) {
  for (const [key, pressed] of Object.entries(data.pressed))
    document.querySelector(`.st-key-${CSS.escape(key.replaceAll(/[^\w-]/g, "-"))} button`)?.setAttribute("aria-pressed", pressed);
  for (const choice of document.querySelectorAll("[role=option]")) {
    const note = data.notes[choice.innerText.trim()];
    note ? (choice.dataset.note = note) : delete choice.dataset.note;
  }
}

function tellRefusedNumbers(state) {
  const wrong = [...document.querySelectorAll('[data-testid="stNumberInput"] input[aria-invalid="true"]')];
  const sentences = wrong.map((field) => {
    const label = field.getAttribute("aria-label"), [low, high] = [field.min, field.max];
    const then = state.now.data.values[label];
    return `${label}: ${field.value} is not between ${low} and ${high}${then ? `, so ${then} will run` : ""}.`;
  });
  say(state.note, sentences.join(" "));
}

function tellProgress(state) {
  const bar = document.querySelector(":is(.st-key-bar, .st-key-filling) [role=progressbar]");
  const quarter = bar ? Math.floor(bar.getAttribute("aria-valuenow") / 25) : 0;
  if (quarter > state.quarter) say(state.voice, `${25 * quarter} percent of the ${bar.closest(".st-key-bar") ? "clip is" : "clips are"} made.`);
  state.quarter = quarter;
}

// Streamlit's own autoplay is lost where React renders a video anew before it is shown.
function playClips(state) {
  for (const video of document.querySelectorAll("video.stVideo")) {
    if (video.dataset.begun === video.src || video.src === state.paused) continue;
    video.dataset.begun = video.src;
    video.playsInline = true; // phones would fill the screen
    video.play().catch(() => {}); // where the browser forbids to play unasked
  }
}

function say(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

function start() {
  const state = (window.sgmHands = { focused: {}, quarter: 0, now: null });
  state.note = Object.assign(document.createElement("p"), { className: "note" });
  state.voice = Object.assign(document.createElement("p"), { className: "voice" });
  for (const place of [state.note, state.voice]) place.setAttribute("role", "status");
  const on = (name, act) => document.addEventListener(name, (event) => state.now && act(event), true);
  on("paste", (event) => take(event, event.clipboardData?.files));
  on("dragover", (event) => uploader() && event.dataTransfer?.types.includes("Files") && event.preventDefault());
  on("drop", (event) => take(event, event.dataTransfer?.files));
  on("change", (event) => {
    const files = event.target === uploader() ? [...event.target.files] : [];
    if (!files.length || !(files.some(tooLarge) || tooMany(files) || areSeveral(files))) return;
    event.stopImmediatePropagation();
    event.target.value = "";
    give(files);
  });
  const noteFocus = (element) => {
    const places = []; // of the element, innermost first
    for (let at = element.closest('[class*="st-key-"]'); at; at = at.parentElement.closest('[class*="st-key-"]'))
      places.push([...at.classList].find((name) => name.startsWith("st-key-")));
    state.focused = { element, places: [...places, "st-key-bar"] };
  };
  noteFocus(document.activeElement);
  on("focusin", (event) => noteFocus(event.target));
  on("pointerdown", () => (state.focused = {})); // the hand moves it now
  on("click", ({ target }) => {
    if (!target.closest('[data-testid="stFileUploader"] [aria-label^="Remove "]')) return;
    const which = target.closest(".st-key-last_place") ? "last" : target.closest(".st-key-upload") && "first";
    which && state.now.setStateValue("removed", `${which} ${Date.now()}`);
  });
  on("click", ({ target }) => target.closest(".goto") && document.querySelector(".st-key-result").scrollIntoView({ behavior: "smooth" }));
  on("pause", ({ target }) => target.ended || (state.paused = target.src)); // by hand: stays so where it is drawn anew
  on("play", ({ target }) => target.src === state.paused && (state.paused = ""));
  let waiting = false;
  new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => {
      waiting = false;
      if (!state.now) return;
      giveCarried(state), focusStays(state), describe(state.now), tellRefusedNumbers(state), tellProgress(state), playClips(state);
    }, 50);
  }).observe(document.body, { subtree: true, childList: true, attributeFilter: ["aria-invalid", "data-test-script-state", "src"] });
  return state;
}

export default function (component) {
  const state = window.sgmHands ?? start();
  const { said } = component.data;
  if (state.said !== undefined && said !== state.said) say(state.voice, said);
  state.said = said;
  state.now = component;
  component.parentElement.append(state.note, state.voice);
  describe(component), tellRefusedNumbers(state), playClips(state);
  return () => {
    if (state.now === component) state.now = null; // not where the next one has begun
  };
}
