"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const text = document.getElementById("text");
const tokens = text.getElementsByTagName("b");
const names = ["student", "teacher", "reference"];
const T = data.ids.length, C = data.networks[0].ids.length / T;
const nodes = Array.from(tokens);
let heat = 0, at = -1;
// One map for all tokens: a listener or a number on each would be 20,000 of them.
const places = new Map(nodes.map((node, t) => [node, t]));

function make(tag, className, content) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (content !== undefined) node.textContent = content;
  return node;
}
const seen = (word) => word.replaceAll("\n", "↵").replaceAll("\t", "⇥") || "·";
// A token's first space stands before its element, so that it is not coloured.
const whole = ({ previousSibling: before, textContent }) =>
  (before?.nodeType === Node.TEXT_NODE ? before.textContent : "") + textContent;
const percent = (p) => (p >= 0.9995 ? "100 %" : p >= 0.0995 ? (100 * p).toFixed(0) + " %"
  : p >= 0.001 ? (100 * p).toFixed(1) + " %" : p > 0 ? "<0.1 %" : "0 %");
const number = (x, digits) => (x === null ? "–" : x.toFixed(digits).replace("-", "−"));

function meter(name, share) {
  const row = make("div", "meter");
  row.append(make("span", name, name));
  const bar = make("i", name), filled = make("u");
  filled.style.width = 100 * Math.min(share, 1) + "%";
  bar.append(filled);
  row.append(bar, make("span", "", percent(share)));
  return row;
}

function table(t) {
  const node = make("table"), head = node.createTHead().insertRow();
  for (const title of ["", "this token", "entropy"]) head.append(make("th", "", title));
  const body = node.createTBody();
  data.networks.forEach((network, n) => {
    const row = body.insertRow();
    row.append(make("th", names[n], names[n]));
    row.insertCell().textContent = percent(Math.exp(network.logp[t]));
    row.insertCell().textContent = number(network.entropy[t], 2) + " nats";
  });
  return node;
}

function alternatives(t) {
  const all = make("div", "tops");
  data.networks.forEach((network, n) => {
    const list = make("ol");
    list.append(make("li", "head " + names[n], names[n]));
    for (let c = 0; c < C; c++) {
      const id = network.ids[t * C + c], p = Math.exp(network.logps[t * C + c]);
      const item = make("li");
      item.style.setProperty("--p", 100 * p + "%");
      item.append(make("code", data.epistemic[id] ? "e" : "", seen(data.words[id])));
      item.append(make("span", "", percent(p)));
      list.append(item);
    }
    all.append(list);
  });
  return all;
}

function objective(t) {
  const node = make("table"), body = node.createTBody();
  const { weight, push, loss } = data.objective;
  const way = Math.abs(push[t]) < 0.0005 ? "no push" : push[t] > 0 ? "▲ raises doubt" : "▼ lowers doubt";
  for (const [name, value] of [["weight", number(weight[t], 2)], ["loss", number(loss[t], 3)],
    ["push", number(push[t], 3) + "  " + way]]) {
    const row = body.insertRow();
    row.append(make("th", "", name));
    row.insertCell().textContent = value;
  }
  return node;
}

function show(t, moves) {
  document.getElementById("panel").classList.remove("folded");
  if (at >= 0) nodes[at].classList.remove("here");
  at = t;
  nodes[t].classList.add("here");
  // On a narrow screen the panel covers the lower half.
  if (moves) nodes[t].scrollIntoView({ block: innerWidth <= 900 ? "start" : "center" });
  const here = document.getElementById("here");
  here.setAttribute("x", (480 * (t + 0.5)) / T - 0.5);
  here.style.opacity = 0.8;
  document.getElementById("where").textContent = (t + 1).toLocaleString("en") + " of " + T.toLocaleString("en");
  const detail = document.getElementById("detail");
  const title = make("p");
  title.append(make("span", "word", seen(whole(nodes[t]))), " ", make("span", "faint", "id " + data.ids[t]));
  detail.replaceChildren(title, make("h3", "", "Chance of a word of doubt here"));
  data.networks.forEach((network, n) => detail.append(meter(names[n], network.mass[t])));
  detail.append(make("h3", "", "Likeliest tokens"), alternatives(t));
  detail.append(make("h3", "", "This token, and KL(T‖S) = " + number(data.kl[t], 3) + " nats"), table(t));
  if (data.objective) detail.append(make("h3", "", "Objective"), objective(t));
}

// The nearest fork in a direction: a token whose value in the chosen colour is large.
function fork(step) {
  const { values, fork: least } = data.heats[heat];
  for (let t = at < 0 ? (step > 0 ? 0 : T - 1) : at + step; t >= 0 && t < T; t += step)
    if (Math.abs(values[t]) >= least) return t;
  return at;
}
const ways = {
  "+": () => Math.min(at + 1, T - 1),
  "-": () => Math.max(at - 1, 0),
  "fork+": () => fork(1),
  "fork-": () => fork(-1),
};
function walk(way) {
  const t = ways[way]();
  if (t >= 0 && t !== at) show(t, true);
}

function colour(chosen) {
  heat = chosen;
  const { values, most } = data.heats[heat];
  for (let t = 0; t < T; t++) {
    const share = Math.min(Math.abs(values[t] ?? most) / most, 1);
    const shade = share < 0.01 ? 0 : Math.round(data.shades * Math.sqrt(share));
    const kept = nodes[t].className.split(" ").filter((name) => !/^s-?\d$/.test(name));
    nodes[t].className = (shade ? ["s" + (values[t] < 0 ? "-" : "") + shade, ...kept] : kept).join(" ");
  }
  for (const button of document.querySelectorAll("[data-heat]")) {
    const is = Number(button.dataset.heat) === heat;
    button.setAttribute("aria-pressed", is);
    if (!is) continue;
    document.getElementById("warm").textContent = button.dataset.warm;
    const cold = document.getElementById("cold");
    cold.replaceChildren();
    if (button.dataset.cold) cold.append(", ", make("b", "s-6", "cold"), " " + button.dataset.cold);
  }
}

// Pointing shows a token; a tap or click keeps it until the next one.
let isKept = false;
text.addEventListener("pointerover", (event) => {
  const t = places.get(event.target);
  if (t !== undefined && !isKept && event.pointerType === "mouse") show(t, false);
});
text.addEventListener("click", (event) => {
  const t = places.get(event.target);
  if (t === undefined) return;
  isKept = !(isKept && t === at);
  show(t, false);
});
document.addEventListener("click", (event) => {
  const { heat: chosen, walk: way, fold } = event.target.dataset ?? {};
  if (fold !== undefined) document.getElementById("panel").classList.toggle("folded");
  if (chosen !== undefined) colour(Number(chosen));
  if (way !== undefined) { isKept = true; walk(way); }
});
document.getElementById("strip").addEventListener("click", (event) => {
  const box = event.currentTarget.getBoundingClientRect();
  isKept = true;
  show(Math.max(0, Math.min(T - 1, Math.floor((T * (event.clientX - box.left)) / box.width))), true);
});
const keys = { ArrowRight: "+", ArrowLeft: "-", n: "fork+", p: "fork-" };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") isKept = false;
  if (!(event.key in keys)) return;
  event.preventDefault();
  isKept = true;
  walk(keys[event.key]);
});
