// The player of several clips in step: see player.py. One clock for all, so that none of them drifts from the others.
// A clip comes as one picture, its frames in rows, decoded once: any frame can be drawn at any moment.
const STEPS = { ArrowLeft: -1, ArrowRight: 1 }, ENDS = { Home: 0, End: -1 };
const PAIRS = { wipe: "Left and right: clips", difference: "Difference of clips" };

const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const name = (element, label) => (element.setAttribute("aria-label", label), element);
const frameAt = ({ fps, frames }, time) => Math.min(frames - 1, Math.floor(time * fps + 1e-4));
const cell = ({ columns, width, height }, frame) => [(frame % columns) * width, Math.floor(frame / columns) * height, width, height];

class Player {
  time = 0; playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  loop = true; speed = 1; wiped = 50;
  sheets = new Map(); // address -> promise of its ImageBitmap
  clips = []; canvases = []; moments = [0]; end = 1;

  constructor(place) {
    this.stage = make("div", { className: "stage-of-clips" });
    this.button = make("button", { type: "button", className: "play", onclick: () => this.play(!this.playing) });
    this.button.setAttribute("aria-keyshortcuts", "Space");
    this.scrubber = name(make("input", { type: "range", min: 0, step: 1, value: 0 }), "Moment of all clips");
    this.scrubber.oninput = () => this.goTo(Number(this.scrubber.value));
    this.clock = make("output", { className: "clock" });
    const loop = make("input", { type: "checkbox", checked: true, onchange: () => (this.loop = loop.checked) });
    const speed = name(make("select"), "Speed");
    for (const [value, label] of [[0.25, "¼ ×"], [0.5, "½ ×"], [1, "1 ×"], [2, "2 ×"]])
      speed.append(make("option", { value, textContent: label, selected: value === 1 }));
    speed.onchange = () => { this.speed = Number(speed.value); this.from(this.time); };
    this.bar = make("div", { className: "controls" }, this.button, this.scrubber, this.clock,
      make("label", {}, loop, "Loop"), speed);
    this.bar.setAttribute("role", "group");
    name(this.bar, "Playback");
    place.append(this.stage, this.bar);
    this.onkey = (event) => this.key(event);
    this.ontick = (now) => this.tick(now);
  }

  async show({ data: { view, gain, clips }, setTriggerValue }) {
    const round = (this.round = Symbol());
    for (const [address, sheet] of this.sheets)
      if (!clips.some(({ url }) => url === address)) {
        this.sheets.delete(address);
        sheet.then((bitmap) => bitmap.close(), () => {});
      }
    let ready = 0;
    const told = () => (this.clock.textContent = `Loading ${ready} of ${clips.length}`);
    const fetched = clips.map(({ url }) => {
      if (!this.sheets.has(url)) this.sheets.set(url, load(url));
      return this.sheets.get(url).then((bitmap) => (ready++, round === this.round && told(), bitmap));
    });
    if (!this.clips.length) told();
    try {
      const bitmaps = await Promise.all(fetched);
      if (round !== this.round) return; // something else is to be shown by now
      this.clips = clips.map((clip, i) => ({ ...clip, bitmap: bitmaps[i] }));
    } catch {
      for (const { url } of clips) this.sheets.delete(url);
      this.clock.textContent = "The clips did not arrive. Reload the page.";
      return;
    }
    this.gain = gain;
    this.end = Math.max(...clips.map(({ frames, fps }) => frames / fps));
    const all = clips.flatMap(({ frames, fps }) => Array.from({ length: frames }, (_, i) => Math.round((i / fps) * 1e6) / 1e6));
    this.moments = [...new Set(all)].sort((a, b) => a - b);
    this.scrubber.max = this.moments.length - 1;
    this.build(view, setTriggerValue);
    this.from(Math.min(this.time, this.moments.at(-1)));
    this.play(this.playing);
  }

  build(view, setTriggerValue) {
    const { clips } = this;
    const said = JSON.stringify([view, clips.map(({ url, letter, label }) => [url, letter, label])]);
    if (said === this.built) return this.draw(true);
    this.built = said;
    const canvas = ({ width, height }, label) => {
      const made = name(make("canvas", { width, height }), label);
      made.setAttribute("role", "img");
      return made;
    };
    const caption = ({ id, letter, label }) => {
      const does = (word, text, title) => name(make("button", { type: "button", textContent: text, title,
        onclick: () => setTriggerValue(word, id) }), `${title}: ${letter}, ${label}`);
      return make("figcaption", {}, make("b", { textContent: letter }), make("span", { title: label, textContent: label }),
        does("open", "↗", "Open on Create"), does("removed", "×", "Remove"));
    };
    this.canvases = [];
    const figures = view === "grid" ? clips.map((clip) => {
      this.canvases.push(canvas(clip, `Clip ${clip.letter}: ${clip.label}`));
      return make("figure", {}, this.canvases.at(-1), caption(clip));
    }) : [this.pair(view, canvas), ...clips.map((clip) => make("figure", {}, caption(clip)))];
    const [rows, columns] = view === "grid" ? layout(clips.length) : [1, 1];
    const aspect = Math.min(...clips.map(({ width, height }) => width / height));
    this.stage.className = `stage-of-clips ${view}`;
    for (const [key, value] of Object.entries({ rows, columns, aspect, narrow: clips.length > 2 ? 2 : 1 })) this.stage.style.setProperty(`--${key}`, value);
    this.stage.replaceChildren(...figures);
    this.draw(true);
  }

  pair(view, canvas) {
    const [a, b] = this.clips, label = `${PAIRS[view]} ${a.letter} and ${b.letter}`;
    this.canvases = [canvas(a, label)];
    const box = make("figure", { className: "pair" }, this.canvases[0]);
    if (view !== "wipe") return box;
    const slider = name(make("input", { type: "range", min: 0, max: 100, step: 0.5, value: this.wiped, className: "wipe" }),
      `Border between ${a.letter} on the left and ${b.letter} on the right, percent`);
    slider.oninput = () => { this.wiped = Number(slider.value); box.style.setProperty("--wiped", `${this.wiped}%`); this.draw(true); };
    box.style.setProperty("--wiped", `${this.wiped}%`);
    box.append(make("i", { className: "border" }), make("b", { textContent: a.letter }), make("b", { textContent: b.letter }), slider);
    return box;
  }

  draw(anyway = false) {
    const { clips, canvases, time } = this;
    const frames = clips.map((clip) => frameAt(clip, time)), single = canvases.length === 1 && clips.length > 1;
    if (single) {
      if (anyway || String(frames) !== this.drawn) this.drawPair(canvases[0], frames);
    } else
      canvases.forEach((canvas, i) => {
        if (!anyway && canvas.frame === frames[i]) return;
        canvas.frame = frames[i];
        paint(canvas, clips[i], frames[i]);
      });
    if (!anyway && String(frames) === this.drawn) return;
    this.drawn = String(frames);
    const moment = Math.max(0, this.moments.findLastIndex((at) => at <= time + 1e-4));
    this.scrubber.value = moment;
    const text = `Frame ${moment + 1} of ${this.moments.length} · ${time.toFixed(2)} s`;
    this.scrubber.setAttribute("aria-valuetext", text);
    this.clock.textContent = text;
  }

  drawPair(canvas, [one, two]) {
    const [a, b] = this.clips, context = canvas.getContext("2d"), { width, height } = canvas;
    paint(canvas, a, one);
    if (this.stage.classList.contains("wipe")) {
      const left = Math.round((width * this.wiped) / 100);
      context.save();
      context.beginPath();
      context.rect(left, 0, width - left, height);
      context.clip();
      paint(canvas, b, two);
      context.restore();
      return;
    }
    context.globalCompositeOperation = "difference";
    paint(canvas, b, two);
    context.globalCompositeOperation = "lighter"; // the picture plus itself is twice the picture
    for (let gain = 1; gain < this.gain; gain *= 2) context.drawImage(canvas, 0, 0);
    context.globalCompositeOperation = "source-over";
  }

  from(time) {
    this.time = time;
    this.origin = performance.now() - (time * 1000) / this.speed;
    this.draw();
  }

  goTo(moment) {
    this.play(false);
    this.from(this.moments[Math.max(0, Math.min(moment, this.moments.length - 1))]);
  }

  play(playing) {
    this.playing = playing;
    this.button.textContent = playing ? "❚❚" : "▶";
    name(this.button, playing ? "Pause" : "Play");
    cancelAnimationFrame(this.request);
    if (!playing || !this.clips.length) return;
    this.from(this.time + 1e-4 >= this.end || (!this.loop && this.time === this.moments.at(-1)) ? 0 : this.time);
    this.request = requestAnimationFrame(this.ontick);
  }

  tick(now) {
    const time = Math.max(0, ((now - this.origin) / 1000) * this.speed);
    if (time >= this.end && !this.loop) return this.goTo(this.moments.length - 1);
    this.time = time % this.end; // of the clock, never a sum of steps
    this.draw();
    this.request = requestAnimationFrame(this.ontick);
  }

  key(event) {
    const target = event.composedPath()[0], { key } = event;
    if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || !this.clips.length) return;
    const own = target === this.scrubber;
    if (!own && target.closest?.("input, select, textarea, [role=radiogroup], [role=combobox], [role=listbox], [role=dialog], [contenteditable]")) return;
    if (key === " " && (own || !target.closest?.("button, a, summary"))) this.play(!this.playing);
    else if (key in STEPS) this.goTo(Number(this.scrubber.value) + STEPS[key]);
    else if (key in ENDS) this.goTo(ENDS[key] ? this.moments.length - 1 : 0);
    else return;
    event.preventDefault();
  }
}

async function load(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(response.statusText);
  return createImageBitmap(await response.blob(), { colorSpaceConversion: "none" });
}

function paint(canvas, clip, frame) {
  canvas.getContext("2d").drawImage(clip.bitmap, ...cell(clip, frame), 0, 0, canvas.width, canvas.height);
}

function layout(count) {
  const columns = count === 4 ? 2 : Math.min(count, 3);
  return [Math.ceil(count / columns), columns];
}

export default function (component) {
  const place = component.parentElement;
  const player = (place.player ??= new Player(place));
  document.addEventListener("keydown", player.onkey);
  player.show(component);
  return () => {
    document.removeEventListener("keydown", player.onkey);
    cancelAnimationFrame(player.request);
  };
}
