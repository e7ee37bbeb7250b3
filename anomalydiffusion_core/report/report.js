"use strict";
// The pairs of a report, page by page: filter them, look closely, mark them, take the list of rejected ones away.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const { pairs, checks, key, files } = read("index");
const byId = (id) => document.getElementById(id);
const controls = ["type", "show", "score", "from", "to", "order", "size"];
let shown = []; // numbers of the pairs that the filters leave
let page = 0;
let zoomed = null; // number of the pair in the dialog

// What somebody marked stays in this browser, by the path of the pair's image.
let marks = {};
let kept = true;
try {
  const stored = JSON.parse(localStorage.getItem(key) || "{}");
  for (const pair of pairs) {
    if (pair.accepted && ["accepted", "rejected"].includes(stored[pair.file])) marks[pair.file] = stored[pair.file];
  }
} catch {
  kept = false;
}

function keep() {
  try {
    localStorage.setItem(key, JSON.stringify(marks));
  } catch {
    kept = false;
  }
  byId("kept").textContent = kept
    ? "Marks are kept in this browser."
    : "This browser keeps no marks for this page: copy or download the list before you close it.";
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child != null));
  return made;
}

function scoreText(pair) {
  return Object.entries(pair.scores).map(([name, value]) => {
    const limit = pair.limits[name];
    const asked = limit == null ? "" : ` (at ${checks[name]?.most ? "most" : "least"} ${limit.toFixed(2)})`;
    return element("span", { className: stopped(pair, name) ? "low" : "" }, `${name} ${value.toFixed(2)}${asked}  `);
  });
}

// How far a score is on the right side of its limit; negative where the check stops the pair.
function margin(pair, name) {
  if (!(name in pair.scores) || pair.limits[name] == null) return Infinity;
  const above = pair.scores[name] - pair.limits[name];
  return checks[name]?.most ? -above : above;
}

const stopped = (pair, name) => margin(pair, name) < 0;

function state(pair) {
  const why = pair.why ? `rejected: ${pair.why}` : "accepted by the gate";
  const mark = marks[pair.file];
  return mark ? `${why}, ${mark} by you` : why;
}

const SHOW = {
  all: () => true,
  accepted: (pair) => pair.accepted,
  open: (pair) => pair.accepted && !marks[pair.file],
  "mark:rejected": (pair) => marks[pair.file] === "rejected",
  "mark:accepted": (pair) => marks[pair.file] === "accepted",
  stopped: (pair) => !pair.accepted,
};

function wanted(pair) {
  const type = byId("type").value;
  const show = byId("show").value;
  const score = byId("score").value;
  if (type && pair.type !== type) return false;
  if (show.startsWith("why:") ? !(pair.why || "").split(", ").includes(show.slice(4)) : !SHOW[show](pair)) return false;
  const bounds = [byId("from"), byId("to")].map((input) => (input.value === "" ? null : Number(input.value)));
  if (bounds.every((bound) => bound === null)) return true;
  const value = pair.scores[score];
  return value !== undefined && (bounds[0] === null || value >= bounds[0]) && (bounds[1] === null || value <= bounds[1]);
}

function filter() {
  const score = byId("score").value;
  const order = byId("order").value;
  shown = pairs.map((_, number) => number).filter((number) => wanted(pairs[number]));
  const rank = {
    lowest: (pair) => pair.scores[score] ?? Infinity,
    highest: (pair) => -(pair.scores[score] ?? -Infinity),
    closest: (pair) => Math.abs(margin(pair, score)),
  }[order];
  if (rank) shown.sort((a, b) => rank(pairs[a]) - rank(pairs[b]) || a - b);
  page = 0;
  draw();
}

function draw() {
  const size = Number(byId("size").value);
  const count = Math.max(1, Math.ceil(shown.length / size));
  page = Math.min(Math.max(page, 0), count - 1);
  byId("cards").replaceChildren(...shown.slice(page * size, (page + 1) * size).map(card));
  byId("found").textContent = `${shown.length} of ${pairs.length} pairs`;
  byId("page").textContent = `Page ${page + 1} of ${count}`;
  byId("previous").disabled = page === 0;
  byId("next").disabled = page === count - 1;
  list();
}

function verdicts(number) {
  const pair = pairs[number];
  if (!pair.accepted) return null;
  return element(
    "div",
    { className: "verdicts" },
    ...["accepted", "rejected"].map((mark) => {
      const button = element("button", { type: "button" }, mark === "accepted" ? "Accept" : "Reject");
      button.dataset.mark = mark;
      button.setAttribute("aria-pressed", String(marks[pair.file] === mark));
      button.addEventListener("click", () => toggle(number, mark));
      return button;
    }),
  );
}

function card(number) {
  const pair = pairs[number];
  const pictures = read(`pictures-${number}`);
  const heads = element("div", { className: "heads" }, ...["normal photo", "outline of the mask", "with the defect"].map((text) => element("span", {}, text)));
  const open = element("button", { type: "button", className: "zoom", title: "Look closer (Enter)" });
  open.setAttribute("aria-label", `Look closer at ${pair.file}`);
  for (const [what, source] of [["Close-up", pictures.close], ["Detail", pictures.detail]]) {
    if (source) open.append(element("img", { src: source, alt: `${what} of ${pair.file}`, loading: "lazy", width: 632, height: 208 }));
  }
  open.addEventListener("click", () => zoom(number));
  const made = element(
    "article",
    { className: `pair ${marks[pair.file] || ""} ${pair.accepted ? "" : "stopped"}`, tabIndex: -1 },
    heads,
    open,
    element("p", {}, element("b", {}, pair.type), " ", element("code", {}, pair.file)),
    element("p", {}, `${state(pair)}. `, ...scoreText(pair)),
    verdicts(number),
  );
  made.dataset.number = number;
  return made;
}

function toggle(number, mark) {
  const { file, accepted } = pairs[number];
  if (!accepted) return;
  if (marks[file] === mark) delete marks[file];
  else marks[file] = mark;
  keep();
  const old = document.querySelector(`article[data-number="${number}"]`);
  if (old) {
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const fresh = card(number);
    old.replaceWith(fresh);
    if (focused) fresh.querySelector(focused.dataset.mark ? `[data-mark=${focused.dataset.mark}]` : ".zoom").focus();
  }
  if (zoomed === number) zoom(number);
  list();
}

function rejected() {
  return pairs.filter((pair) => marks[pair.file] === "rejected").map((pair) => pair.file);
}

function list() {
  const names = rejected();
  const good = pairs.filter((pair) => marks[pair.file] === "accepted").length;
  const open = pairs.filter((pair) => pair.accepted).length - names.length - good;
  byId("marked").textContent = `${names.length} rejected, ${good} accepted, ${open} not judged yet.`;
  byId("list").value = names.length ? names.join("\n") + "\n" : "";
  for (const id of ["copy", "download"]) byId(id).disabled = !names.length;
  byId("clear").disabled = !names.length && !good;
}

function zoom(number) {
  zoomed = number;
  const pair = pairs[number];
  const pictures = read(`pictures-${number}`);
  const parts = [element("h2", {}, `${pair.type}: ${state(pair)}`), verdicts(number), element("p", {}, ...scoreText(pair))];
  for (const [text, source] of [
    ["The defect and what lies around it: normal photo, outline of the mask, with the defect", pictures.close],
    ["Where it changed most, enlarged three times", pictures.detail],
  ]) {
    if (source) parts.push(element("figure", {}, element("img", { src: source, alt: text }), element("figcaption", {}, text)));
  }
  if (pictures.whole) {
    const place = element("span");
    [place.style.left, place.style.top, place.style.width, place.style.height] = pair.place.map((share) => `${100 * share}%`);
    const whole = element("div", { className: "whole" }, element("img", { src: pictures.whole, alt: "The whole photo" }), place);
    parts.push(element("figure", {}, whole, element("figcaption", {}, `The whole photo, ${pair.size} px; the box is the close-up.`)));
  }
  for (const sentence of pair.said) parts.push(element("p", {}, sentence));
  const file = element("code", {}, pair.file);
  // a page that was opened from a server or from memory has no files beside it
  parts.push(element("p", {}, "File: ", files !== null && location.protocol === "file:" ? element("a", { href: files + pair.link, target: "_blank", rel: "noreferrer" }, file) : file));
  byId("zoomed").replaceChildren(...parts.filter(Boolean));
  if (!byId("zoom").open) byId("zoom").showModal();
}

function turn(step) {
  const at = shown.indexOf(zoomed) + step;
  if (at < 0 || at >= shown.length) return;
  zoom(shown[at]);
  byId("zoomed").scrollTop = 0;
}

function focusCard(step) {
  const cards = [...document.querySelectorAll("article")];
  const at = cards.findIndex((one) => one.contains(document.activeElement));
  const next = at < 0 ? 0 : at + step;
  if (next >= cards.length || next < 0) {
    const before = page;
    page += next < 0 ? -1 : 1;
    draw();
    if (page !== before) focusCardAt(next < 0 ? -1 : 0);
    else focusCardAt(next < 0 ? 0 : -1);
  } else focusCardAt(next);
}

function focusCardAt(index) {
  const one = [...document.querySelectorAll("article .zoom")].at(index);
  if (!one) return;
  one.focus();
  one.closest("article").scrollIntoView({ block: "nearest" });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  const inDialog = byId("zoom").open;
  const focused = document.activeElement.closest("article");
  const number = inDialog ? zoomed : focused && Number(focused.dataset.number);
  const mark = { a: "accepted", r: "rejected" }[event.key];
  if (mark && number !== null) {
    toggle(number, mark);
    if (inDialog) turn(1);
    else focusCard(1);
  } else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    const step = event.key === "ArrowRight" ? 1 : -1;
    if (inDialog) turn(step);
    else focusCard(step);
  } else return;
  event.preventDefault();
}

async function copy() {
  const text = byId("list");
  try {
    await navigator.clipboard.writeText(text.value);
  } catch {
    text.select();
    document.execCommand("copy");
  }
  byId("told").textContent = "Copied.";
}

function download() {
  const address = URL.createObjectURL(new Blob([byId("list").value], { type: "text/plain" }));
  element("a", { href: address, download: "reject.txt" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  byId("told").textContent = "Downloaded as reject.txt.";
}

for (const id of controls) byId(id).addEventListener("input", id === "size" ? draw : filter);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("reset", () => setTimeout(filter));
byId("previous").addEventListener("click", () => { page -= 1; draw(); });
byId("next").addEventListener("click", () => { page += 1; draw(); });
byId("copy").addEventListener("click", copy);
byId("download").addEventListener("click", download);
byId("clear").addEventListener("click", () => { marks = {}; keep(); draw(); });
byId("zoom").addEventListener("close", () => {
  const one = document.querySelector(`article[data-number="${zoomed}"] .zoom`);
  zoomed = null;
  if (one) one.focus();
});
document.addEventListener("keydown", onKey);
keep();
filter();
