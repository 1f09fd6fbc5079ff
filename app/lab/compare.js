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
    this.play(this.playing);
    this.onkey = (event) => this.key(event);
    this.ontick = (now) => this.tick(now);
  }

  async show({ data, setTriggerValue }) {
    const round = (this.round = Symbol()), clips = data.clips.filter((clip) => clip?.url);
    clearInterval(this.looking);
    if (data.every) this.looking = setInterval(() => setTriggerValue("look", true), data.every);
    // No look follows an action until its answer is there: where the action leads to another page, it would empty that.
    this.ask = (word, id) => (clearInterval(this.looking), setTriggerValue(word, id));
    for (const [address, sheet] of this.sheets)
      if (!clips.some(({ url }) => url === address)) {
        this.sheets.delete(address);
        sheet.then((bitmap) => bitmap.close(), () => {});
      }
    let ready = 0;
    const told = () => (this.clock.textContent = `Loading ${ready} of ${clips.length}`);
    const fetched = clips.map(({ url }) => {
      if (!this.sheets.has(url)) this.sheets.set(url, load(url));
      return this.sheets.get(url).then((bitmap) => (ready++, this.clips.length || told(), bitmap));
    });
    if (!this.clips.length && clips.length) told();
    try {
      const bitmaps = await Promise.all(fetched);
      if (round !== this.round) return; // something else is to be shown by now
      this.clips = clips.map((clip, i) => ({ ...clip, bitmap: bitmaps[i] }));
    } catch {
      for (const { url } of clips) this.sheets.delete(url);
      this.clock.textContent = "The clips did not arrive. Reload the page.";
      return;
    }
    this.gain = data.gain;
    this.end = Math.max(...clips.map(({ frames, fps }) => frames / fps), 0.1);
    const all = clips.flatMap(({ frames, fps }) => Array.from({ length: frames }, (_, i) => Math.round((i / fps) * 1e6) / 1e6));
    this.moments = [...new Set([0, ...all])].sort((a, b) => a - b);
    this.scrubber.max = this.moments.length - 1;
    this.bar.hidden = !clips.length;
    this.build(data);
    this.from(Math.min(this.time, this.moments.at(-1)));
    this.draw(true);
    this.play(this.playing);
  }

  // What is as it was stays in its place, with its focus.
  build({ view, clips, columns, heads, sides }) {
    const said = JSON.stringify([view, columns, heads, sides, clips.map((clip) => clip?.id)]);
    const made = clips.map((clip, i) => this.tile(clip, view, this.tiles?.[i]));
    if (said === this.built) made.forEach((tile, i) => tile === this.tiles[i] || this.tiles[i].replaceWith(tile));
    else {
      const wide = columns || layout(clips.length), rows = view === "grid" ? Math.ceil(clips.length / wide) : 1;
      const aspect = Math.min(...clips.filter(Boolean).map(({ width, height }) => width / height));
      const across = view === "grid" ? wide : 1, sizes = { rows, columns: across, aspect, narrow: columns ? Math.min(columns, 2) : clips.length > 2 ? 2 : 1 };
      for (const [key, value] of Object.entries(sizes)) this.stage.style.setProperty(`--${key}`, value);
      this.stage.className = `stage-of-clips ${view}${heads.length || sides.length ? " labelled" : ""}`;
      const label = (text) => make("span", { className: "label", textContent: text });
      const lines = Array.from({ length: rows }, (_, i) => [...(sides.length ? [label(sides[i])] : []), ...made.slice(i * wide, (i + 1) * wide)]);
      const head = heads.length ? [...(sides.length ? [label("")] : []), ...heads.map(label)] : [];
      this.stage.style.setProperty("--sides", sides.length ? "minmax(3rem, max-content)" : "");
      this.stage.replaceChildren(...(view === "grid" ? [...head, ...lines.flat()] : [this.pair(view), ...made]));
      this.built = said;
    }
    this.tiles = made;
    this.canvases = [...this.stage.querySelectorAll("canvas")];
  }

  tile(clip, view, before) {
    const said = JSON.stringify(clip && [clip.id, clip.url, clip.label, clip.actions, view]);
    const tile = before?.said === said ? before : make("figure", { said });
    if (tile !== before && clip) {
      const { id, url, letter, label, actions, width, height } = clip;
      if (view === "grid") tile.append(url ? canvas(clip, `Clip ${letter}: ${label}`)
        : make("div", { className: "note-of-clip", style: `aspect-ratio: ${width} / ${height}` }));
      const does = ([word, text, title]) => name(make("button", { type: "button", textContent: text, title,
        onclick: () => this.ask(word, id) }), `${title}: ${letter}, ${label}`);
      tile.append(make("figcaption", {}, make("b", { textContent: letter }),
        make("span", { title: label, textContent: label }), ...actions.map(does)));
    }
    const note = tile.querySelector(".note-of-clip");
    if (note && note.textContent !== clip.note) note.textContent = clip.note;
    return tile;
  }

  pair(view) {
    const [a, b] = this.clips, label = `${PAIRS[view]} ${a.letter} and ${b.letter}`;
    const box = make("figure", { className: "pair" }, canvas(a, label));
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
    const frames = clips.map((clip) => frameAt(clip, time));
    if (!this.stage.classList.contains("grid")) {
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

function canvas({ width, height }, label) {
  const made = name(make("canvas", { width, height }), label);
  made.setAttribute("role", "img");
  return made;
}

function layout(count) {
  return count === 4 ? 2 : Math.min(count, 3); // columns
}

export default function (component) {
  const place = component.parentElement;
  const player = (place.player ??= new Player(place));
  document.addEventListener("keydown", player.onkey);
  player.show(component);
  return () => {
    document.removeEventListener("keydown", player.onkey);
    cancelAnimationFrame(player.request);
    clearInterval(player.looking);
  };
}
