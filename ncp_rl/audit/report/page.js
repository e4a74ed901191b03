// The page's state, which is in the fragment of its address, and the plots, drawn when they come into view.

const report = JSON.parse(document.getElementById("report").textContent);
// A recording that is not explained has no episodes here: its parts of the page are shown beside the chosen one's.
const isPlayed = (r) => report.subjects[r].episodes.length > 0;
const played = [...report.subjects.keys()].filter(isPlayed);
played.forEach((r) => unpack(report.subjects[r]));

const state = { r: played[0], e: 0, t: 0, a: 0, n: "", c: null };
const panes = [];
let playing = false, frame = 0, lastFrame = 0, due = 0, writing = 0;

const byId = (id) => document.getElementById(id);
const clamp = (x, last) => Math.min(Math.max(Math.trunc(x) || 0, 0), Math.max(last, 0));

// #r=0&e=2&t=133&a=0&n=command_3&c=1.4: recording, episode, step, action, neuron, and what it is compared with.
function readFragment() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (!["r", "e", "t", "a", "n", "c"].some((key) => given.has(key))) return;
  const pair = (r, e) => {
    const wanted = clamp(r, report.subjects.length - 1), recording = isPlayed(wanted) ? wanted : played[0];
    return [recording, clamp(e, report.subjects[recording].episodes.length - 1)];
  };
  [state.r, state.e] = pair(given.get("r"), given.get("e"));
  state.t = clamp(given.get("t"), Infinity);
  state.n = given.get("n") || "";
  state.c = given.has("c") ? pair(...given.get("c").split(".")) : null;
  // A pane that has fewer actions shows its last one.
  const recordings = [state.r, ...(state.c ? [state.c[0]] : [])];
  state.a = clamp(given.get("a"), Math.max(...recordings.map((r) => report.subjects[r].actions.length)) - 1);
}

function writeFragment() {
  clearTimeout(writing);
  // Browsers ration changes of the address: wait until the hand rests.
  writing = setTimeout(() => {
    const { r, e, t, a, n, c } = state, fields = { r, e, t };
    if (a) fields.a = a;
    if (n) fields.n = n;
    if (c) fields.c = c.join(".");
    history.replaceState(null, "", `#${new URLSearchParams(fields)}`);
  }, 150);
}

// A new pane has no episode until its own is unpacked.
const episodes = () => panes.map((pane) => pane.episode).filter(Boolean);
const lastStep = () => Math.max(...episodes().map((episode) => episode.steps)) - 1;

function refresh() {
  if (!episodes().length) return;
  state.t = clamp(state.t, lastStep());
  byId("slider").max = lastStep();
  byId("slider").value = state.t;
  panes.forEach((pane) => pane.update(state));
  byId("slider").setAttribute("aria-valuetext", panes[0].find(".clock").textContent);
  if (!playing) writeFragment();
}

async function arrange() {
  const wanted = [[state.r, state.e], ...(state.c ? [state.c] : [])];
  while (panes.length > wanted.length) panes.pop().root.remove();
  while (panes.length < wanted.length) {
    byId("panes").append(byId("pane").content.cloneNode(true));
    panes.push(new Pane(byId("panes").lastElementChild, callbacks));
  }
  announce();
  const shown = new Set(wanted.map(([r]) => r));
  for (const part of document.querySelectorAll("[data-recording]")) {
    const r = Number(part.dataset.recording);
    part.hidden = isPlayed(r) && !shown.has(r);
  }
  byId("compare").setAttribute("aria-pressed", Boolean(state.c));
  document.body.classList.toggle("comparing", Boolean(state.c));
  await Promise.all(panes.map((pane, i) => pane.show(...wanted[i])));
  refresh();
}

const callbacks = {
  choose(pane, r, e) {
    if (pane === panes[0]) [state.r, state.e] = [r, e];
    else state.c = [r, e];
    arrange();
  },
  select(name) { state.n = state.n === name ? "" : name; refresh(); },
  seek(t) { state.t = t; refresh(); },
  act(a) { state.a = a; refresh(); },
};

function toggleCompare() {
  const { subjects } = report, next = (state.e + 1) % subjects[state.r].episodes.length;
  const other = played[(played.indexOf(state.r) + 1) % played.length];
  state.c = state.c ? null : other !== state.r ? [other, 0] : [state.r, next];
  arrange();
}

// Screen readers would not keep up with a player that plays.
function announce() {
  document.querySelectorAll(".why").forEach((why) => why.setAttribute("aria-live", playing ? "off" : "polite"));
}

function play(on) {
  playing = on && episodes().length > 0;
  byId("play").textContent = playing ? "Pause" : "Play";
  byId("play").setAttribute("aria-pressed", playing);
  announce();
  cancelAnimationFrame(frame);
  if (!playing) return writeFragment();
  if (state.t >= lastStep()) state.t = 0;
  lastFrame = performance.now();
  due = 0;
  frame = requestAnimationFrame(tick);
}

// Simulated time follows the clock, times the speed.
function tick(now) {
  due += ((now - lastFrame) / 1000) * Number(byId("speed").value);
  lastFrame = now;
  const { elapsed, steps } = episodes().reduce((a, b) => (b.steps > a.steps ? b : a));
  let t = state.t;
  while (t < steps - 1 && due >= elapsed[t + 1]) due -= elapsed[++t];
  if (t !== state.t) { state.t = t; refresh(); }
  if (t >= steps - 1) play(false);
  else frame = requestAnimationFrame(tick);
}

function nextNeuron(direction) {
  const { names, subject } = panes[0], units = subject.neurons.length;
  const order = names.map((_, i) => (i + units) % names.length), at = order.indexOf(names.indexOf(state.n));
  const next = order[(at + direction + order.length) % order.length];
  state.n = names[next];
  refresh();
  if (document.activeElement.closest(".node")) panes[0].nodes[next].focus();
}

document.addEventListener("keydown", (event) => {
  const tag = event.target.tagName, node = event.target.closest(".node");
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, pre, .wide")) return;
  if (event.target.type === "range" && event.key !== " ") return;
  const far = event.shiftKey ? 10 : 1;
  const actions = {
    ArrowRight: () => callbacks.seek(state.t + far),
    ArrowLeft: () => callbacks.seek(state.t - far),
    Home: () => callbacks.seek(0),
    End: () => callbacks.seek(lastStep()),
  };
  if (node) {
    actions.ArrowDown = () => nextNeuron(1);
    actions.ArrowUp = () => nextNeuron(-1);
    actions.Enter = () => node.dispatchEvent(new Event("click"));
  }
  if (!["BUTTON", "SUMMARY", "A"].includes(tag)) actions[" "] = () => play(!playing);
  // Home and End move through the page unless the player has the focus.
  if ((event.key === "Home" || event.key === "End") && !event.target.closest("#player")) return;
  if (event.key in actions && panes[0]?.episode) {
    event.preventDefault();
    actions[event.key]();
  }
});

// Plots. Their script is inflated once, with the first of them.
const drawn = new Set();
let plotly = null;

function loadPlotly() {
  plotly ||= inflated(byId("plotly").textContent).then((buffer) => {
    const text = new TextDecoder().decode(buffer), styles = /getElementById\("([0-9a-f]{64})"\)/.exec(text);
    // It brings the styles of its maps, which the page's policy refuses, unless an element of their name is there.
    if (styles) document.head.append(make("style", { id: styles[1] }));
    document.head.append(make("script", {}, text));
    return window.Plotly;
  });
  return plotly;
}

function css(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function merge(base, own) {
  const nested = (value) => value && typeof value === "object" && !Array.isArray(value);
  for (const [key, value] of Object.entries(own)) {
    base[key] = nested(value) && nested(base[key]) ? merge(base[key], value) : value;
  }
  return base;
}

function themed(figure) {
  const color = (key, value) => (key === "color" && String(value).startsWith("--") ? css(value) : value);
  const { data, layout } = JSON.parse(figure, color), grid = css("--line");
  const axis = () =>
    ({ gridcolor: grid, zerolinecolor: css("--muted"), linecolor: grid, automargin: true, title: { standoff: 8 } });
  const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
  const base = {
    ...Object.fromEntries(axes.map((key) => [key, axis()])),
    font: { family: css("--font"), size: 12, color: css("--text") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 56, r: 16, t: 24, b: 48 },
    legend: { orientation: "h", yref: "container", y: 1, yanchor: "top", x: 0, font: { size: 12 } },
    hoverlabel: { font: { family: css("--font") } },
  };
  const merged = merge(base, layout);
  if (merged.coloraxis) {
    merged.coloraxis.colorscale = [[0, css("--neg")], [0.5, css("--middle")], [1, css("--pos")]];
  }
  return { data, layout: merged };
}

async function drawPlot(place) {
  const Plotly = await loadPlotly(), { data, layout } = themed(byId(place.dataset.figure).textContent);
  // The place keeps its height when windows change, where plotly.js would forget it.
  place.style.height = `${layout.height}px`;
  delete layout.height;
  await Plotly.react(place, data, layout, { displayModeBar: false, responsive: true });
  if (drawn.has(place)) return;
  drawn.add(place);
  place.on("plotly_click", ({ points: [point] }) => {
    if (!point.customdata) return;
    const r = Number(place.closest("[data-recording]").dataset.recording), [index, t] = point.customdata;
    const e = report.subjects[r].episodes.findIndex((episode) => episode.index === index);
    if (e < 0) return;
    Object.assign(state, { r, e, t });
    arrange();
    byId("player").scrollIntoView();
  });
}

const seen = new IntersectionObserver((entries) => entries.forEach(({ isIntersecting, target }) => {
  if (!isIntersecting) return;
  seen.unobserve(target);
  drawPlot(target);
}), { rootMargin: "400px" });

// The others follow while nothing else is to be done: paper shows what has been drawn.
function drawNext() {
  const places = [...document.querySelectorAll(".plot[data-figure]")];
  const next = places.find((place) => !drawn.has(place) && !place.closest("[hidden]"));
  if (next) drawPlot(next).then(() => whenIdle(drawNext));
}

const whenIdle = (work) => ("requestIdleCallback" in window ? requestIdleCallback(work) : setTimeout(work, 100));

function listen() {
  byId("slider").oninput = (event) => callbacks.seek(Number(event.target.value));
  byId("play").onclick = () => play(!playing);
  byId("compare").onclick = toggleCompare;
  byId("back").onclick = () => callbacks.seek(state.t - 1);
  byId("forward").onclick = () => callbacks.seek(state.t + 1);
  window.onhashchange = () => { if (panes.length) { readFragment(); arrange(); } };
  document.querySelectorAll("[data-choose]").forEach((link) => link.addEventListener("click", () => {
    const r = Number(link.dataset.choose);
    if (isPlayed(r) && r !== state.r && !(state.c && state.c[0] === r)) { Object.assign(state, { r, e: 0 }); arrange(); }
  }));
  for (const media of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(media).onchange = () => drawn.forEach(drawPlot);
  }
  document.querySelectorAll(".plot[data-figure]").forEach((place) => seen.observe(place));
}

listen();
if (played.length) readFragment();
(played.length ? arrange() : Promise.resolve()).then(() => {
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
  setTimeout(() => whenIdle(drawNext), 1500);
});
