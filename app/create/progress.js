// Draws a job's progress, and its latest preview wherever a picture of it is: see progress.py.
const PREVIEW_EVERY = 2000; // milliseconds: to draw a picture costs the browser more than all else
const RETRY = 10000; // milliseconds: to ask for the whole page anew breaks off the run that draws it
const SLOWEST = 8000; // milliseconds: an answer that comes later is taken for lost
const MARKUP = `<div class="told"><p></p><div role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100"><i></i></div>
<p class="about-memory"></p></div>`;
const write = (place, text) => place.textContent === text || (place.textContent = text);

function draw(place, told) {
  const [text, note] = place.querySelectorAll("p"), bar = place.querySelector("[role=progressbar]");
  write(text, told.text + (told.stopping ? "" : place.more));
  write(note, told.note);
  bar.setAttribute("aria-valuenow", told.percent);
  bar.firstChild.style.width = `${told.percent}%`;
  if (!told.preview) return;
  [place.seen, place.since] = [told.number, performance.now()];
  for (const picture of document.querySelectorAll("img[data-job]"))
    Object.assign(picture, { src: told.preview, alt: picture.dataset.job && told.about });
}

export default function ({ data, parentElement, setTriggerValue }) {
  parentElement.querySelector(".told") ?? parentElement.insertAdjacentHTML("beforeend", MARKUP);
  const place = parentElement.querySelector(".told");
  const round = (place.round = Symbol());
  const look = async () => {
    const wants = !place.seen || performance.now() - place.since > PREVIEW_EVERY;
    const answer = await fetch(data.address + (wants ? `?seen=${place.seen ?? ""}` : ""), { signal: AbortSignal.timeout(SLOWEST) }).then((found) => found.json()).catch(() => null);
    if (round !== place.round) return; // all is drawn anew, or gone, meanwhile
    // At its end, all is drawn anew; so it is where a server that was started anew does not know this part of the page.
    const ended = answer ? !answer.active : ++place.unanswered > 3;
    if (ended) window.sgmHands?.now?.setTriggerValue("ended", true);
    else if (answer) draw(place, answer);
    else setTriggerValue("look", true); // `streamlit run` serves the page, which has no such address: Python tells
    place.timer = setTimeout(look, ended ? RETRY : data.every);
  };
  clearTimeout(place.timer);
  if (place.address !== data.address) place.seen = "";
  [place.address, place.more, place.unanswered] = [data.address, data.more, 0];
  draw(place, data);
  place.timer = setTimeout(look, data.every);
  return () => {
    clearTimeout(place.timer);
    place.round = null;
  };
}
