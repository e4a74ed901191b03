// A pane of the player: one episode of one recording at one instant. The page's state is kept in page.js.

const LAYERS = ["sensory", "inter", "command", "motor"];
const ROW_HEIGHT = 26;
const MOST_LINES = 400;

class Pane {
  constructor(root, callbacks) {
    this.root = root;
    this.callbacks = callbacks;
    this.find = (selector) => root.querySelector(selector);
    for (const r of played) this.find(".recording").append(make("option", { value: r }, report.subjects[r].name));
    this.find(".recording").onchange = (event) => callbacks.choose(this, Number(event.target.value), 0);
    this.find(".episode").onchange = (event) => callbacks.choose(this, this.r, Number(event.target.value));
    this.find(".action").onchange = (event) => callbacks.act(Number(event.target.value));
    new ResizeObserver(() => this.episode && this.resize()).observe(this.find(".wiring svg"));
  }

  async show(r, e) {
    const wanted = `${r} ${e}`;
    if (this.wanted === wanted) return;
    this.wanted = wanted;
    const episode = await Episode.load(r, e);
    if (this.wanted !== wanted) return;
    // What is shown is of the old episode until here, and so are its numbers.
    const changed = this.r !== r;
    [this.r, this.e] = [r, e];
    this.episode = episode;
    this.subject = episode.subject;
    this.names = [...this.subject.neurons, ...this.subject.sensory_names];
    if (changed) this.offer();
    this.find(".recording").value = r;
    this.find(".episode").value = e;
    this.buildTraces();
    this.width = 0;
    this.resize();
  }

  // The recording's episodes and actions.
  offer() {
    const list = this.subject.episodes.map(({ index, steps, end, ...episode }, e) =>
      make("option", { value: e }, `${index}: ${steps} steps, return ${digits(episode.return)}, ${end}`));
    this.find(".episode").replaceChildren(...list);
    this.find(".action").replaceChildren(...this.subject.actions.map((name, a) => make("option", { value: a }, name)));
    this.find(".action-choice").hidden = this.subject.actions.length < 2;
  }

  resize() {
    const width = Math.round(this.find(".wiring svg").getBoundingClientRect().width);
    if (!width || width === this.width) return;
    this.width = width;
    this.buildWiring();
    this.placeCursor();
    if (this.state) this.update(this.state);
  }

  layer(node) {
    const within = ([first, last]) => node >= first && node < last;
    return Object.keys(this.subject.layers).find((name) => within(this.subject.layers[name])) || "sensory";
  }

  buildWiring() {
    const svg = this.find(".wiring svg"), { subject, width } = this, units = subject.neurons.length;
    const members = LAYERS.map((name) => this.names.map((_, node) => node).filter((node) => this.layer(node) === name));
    const most = Math.max(...members.map((nodes) => nodes.length)), pitch = Math.max(12, Math.min(28, 560 / most));
    const height = most * pitch + 34, radius = Math.min(9, 0.4 * pitch), phone = width < 480;
    const left = phone ? 84 : 112, right = phone ? 62 : 74;
    this.at = [];
    this.radius = radius;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    const lines = draw("g", { class: "synapses" }), nodes = draw("g", { class: "nodes" });
    svg.replaceChildren(lines, nodes);
    members.forEach((group, column) => {
      if (!group.length) return;
      const x = left + (column * (width - left - right)) / 3;
      const step = Math.min((height - 34) / group.length, 2.2 * pitch);
      nodes.append(draw("text", { x, y: 12, class: "layer" }, LAYERS[column]));
      const top = 28 + (height - 34) / 2 - ((group.length - 1) / 2) * step;
      group.forEach((node, i) => { this.at[node] = [x, top + i * step]; });
    });
    this.lines = ["sensory", "synapses"].flatMap((kind) => subject[kind].source.map((source, k) => {
      const from = kind === "sensory" ? units + source : source, to = subject[kind].destination[k];
      const line = draw("path", { d: this.curve(from, to) });
      line.append(draw("title", {}, ""));
      lines.append(line);
      return { line, from, to, kind, k };
    }));
    const caption = this.find(".wiring figcaption"), n = this.lines.length;
    caption.hidden = n <= MOST_LINES;
    caption.textContent = `The ${MOST_LINES} strongest of ${n} synapses are drawn.`;
    this.nodes = this.names.map((name, node) => this.buildNode(nodes, name, node, radius));
  }

  buildNode(parent, name, node, radius) {
    const [x, y] = this.at[node], sensory = this.layer(node) === "sensory";
    const group = draw("g", { class: "node", role: "button", tabindex: -1, transform: `translate(${x} ${y})` });
    group.append(draw("circle", { r: Math.max(12, radius), class: "target" }), draw("circle", { r: radius }));
    group.append(draw("text", { class: "sign", y: 0.36 * radius + 1 }, ""));
    const label = draw("text", { class: "label", x: (sensory ? -1 : 1) * (radius + 4), y: 3.5 }, name);
    label.setAttribute("text-anchor", sensory ? "end" : "start");
    group.append(label, draw("title", {}, name));
    group.addEventListener("click", () => this.callbacks.select(name));
    parent.append(group);
    return group;
  }

  curve(from, to) {
    const [x, y] = this.at[from], [u, v] = this.at[to], r = this.radius;
    if (from === to) return `M${x - 3} ${y - r}c-14 -20 20 -20 6 0`;
    const bow = x + r + 14 + 0.16 * Math.abs(v - y);
    if (Math.abs(u - x) < 1) return `M${x + r} ${y}Q${bow} ${(y + v) / 2} ${u + r} ${v}`;
    const side = u > x ? r : -r, bend = 0.4 * (u - x);
    return `M${x + side} ${y}C${x + bend} ${y} ${u - bend} ${v} ${u - side} ${v}`;
  }

  buildTraces() {
    const { subject, episode } = this, root = this.find(".traces"), [first, last] = subject.layers.command;
    const watched = last > first ? [first, last] : [0, subject.neurons.length];
    const groups = [
      ["observation [units of the environment]", subject.observations.slice(0, 24).map((name, i) => [name, episode.column("observation", i)])],
      ["action [units of the environment]", this.actionTraces()],
      ["reward [unit of the environment]", [["reward", Float64Array.from(episode.reward)]]],
      [last > first ? "command neurons: potential [no unit]" : "neurons: potential [no unit]", subject.neurons.slice(...watched).map(
        (name, i) => [name, episode.column("potentials", watched[0] + i), true])],
    ];
    this.rows = [];
    root.replaceChildren();
    for (const [title, rows] of groups) {
      if (rows.length) root.append(make("h4", {}, title));
      for (const [name, values, isNeuron] of rows) root.append(this.buildRow(name, values, isNeuron));
    }
    const { end } = episode, axis = make("div", { class: "time axis" });
    [0, end / 2, end].forEach((seconds) => axis.append(make("span", {}, `${digits(seconds)} s`)));
    this.cursor = make("div", { class: "cursor" });
    root.append(axis, make("p", { class: "axis-title" }, "time since the start of the episode [s]"), this.cursor);
  }

  actionTraces() {
    const { episode, subject } = this, steps = [...episode.time.keys()];
    const named = subject.n_actions === subject.actions.length;
    const sent = Array.from({ length: subject.n_actions }, (_, i) =>
      [`${named ? subject.actions[i] : "action"} sent`, episode.column("action", i)]);
    return [...subject.actions.map((name, a) => [`${name} mean`, steps.map((t) => episode.mean(a, t))]), ...sent];
  }

  buildRow(name, values, isNeuron) {
    const row = make("div", { class: "row" }), [low, high] = extent(values);
    const label = make(isNeuron ? "button" : "span", { class: "name" }, name);
    if (isNeuron) label.onclick = () => this.callbacks.select(name);
    const plot = draw("svg", { class: "plot", "aria-hidden": "true", preserveAspectRatio: "none" });
    const value = make("span", { class: "value" });
    this.drawLine(plot, values, low, high, ROW_HEIGHT);
    plot.addEventListener("pointerdown", (event) => this.drag(event, plot));
    row.append(label, plot, value, make("span", { class: "range" }, between(low, high)));
    this.rows.push({ row, name, values, value, plot, isNeuron });
    return row;
  }

  drawLine(plot, values, low, high, height) {
    const { time, steps, end } = this.episode, span = high - low || 1;
    const y = (v) => (height - 3 - ((v - low) / span) * (height - 6)).toFixed(2);
    let path = "";
    for (let t = 0; t < steps; t++) path += `${t ? "L" : "M"}${((1000 * time[t]) / end).toFixed(1)} ${y(values[t])}`;
    plot.setAttribute("viewBox", `0 0 1000 ${height}`);
    if (low < 0 && high > 0) plot.append(draw("path", { class: "zero", d: `M0 ${y(0)}H1000` }));
    plot.append(draw("path", { d: path }));
  }

  // Seek by pointer: press or drag along a trace.
  drag(event, plot) {
    const seek = (at) => {
      const box = plot.getBoundingClientRect(), { time, steps, end } = this.episode;
      const next = time.findIndex((seconds) => seconds >= (end * (at.clientX - box.left)) / box.width);
      this.callbacks.seek(next < 0 ? steps - 1 : next);
    };
    seek(event);
    plot.setPointerCapture(event.pointerId);
    plot.onpointermove = seek;
    plot.onpointerup = plot.onpointercancel = () => { plot.onpointermove = null; };
  }

  placeCursor() {
    const box = this.rows[0].plot.getBoundingClientRect(), root = this.find(".traces").getBoundingClientRect();
    this.span = [box.left - root.left, box.width];
  }

  update(state) {
    this.state = state;
    if (!this.episode || !this.nodes) return;
    const { episode, subject } = this, t = Math.min(state.t, episode.steps - 1);
    const action = Math.min(state.a, subject.actions.length - 1);
    this.t = t;
    this.parts = episode.explain(t);
    this.potentials = episode.row("potentials", t);
    this.inputs = episode.row("sensory", t);
    this.selected = this.names.indexOf(state.n);
    this.find(".action").value = action;
    this.find(".clock").textContent = `step ${t} of ${episode.steps - 1}, ${fixed(episode.time[t])} s`;
    this.find(".why").textContent = `${sentence(subject, this.parts, this.potentials, episode.time[t], action)}.`;
    this.paintNodes();
    this.paintSynapses();
    this.paintTraces();
    this.paintPictures();
    this.paintNeuron();
  }

  value(node) {
    const units = this.subject.neurons.length;
    return node < units ? this.potentials[node] : this.inputs[node - units];
  }

  paintNodes() {
    const { bounds } = this.subject, units = this.subject.neurons.length;
    this.nodes.forEach((group, node) => {
      const value = this.value(node), reach = Math.max(Math.abs(bounds.low[node]), Math.abs(bounds.high[node]));
      const full = node < units ? reach || 1 : this.episode.heading.sensory_scale;
      const [, disc, sign, , title] = group.children, lit = Math.min(1, Math.abs(value) / full);
      group.setAttribute("class", `node ${value < 0 ? "neg" : "pos"}${node === this.selected ? " selected" : ""}`);
      group.setAttribute("tabindex", node === Math.max(this.selected, 0) ? 0 : -1);
      group.setAttribute("aria-label", `${this.layer(node)} neuron ${this.names[node]}, ${shown(value)}`);
      group.setAttribute("aria-pressed", node === this.selected);
      disc.setAttribute("fill-opacity", (0.08 + 0.92 * lit).toFixed(2));
      sign.textContent = lit < 0.05 ? "" : value < 0 ? "−" : "+";
      sign.setAttribute("class", lit > 0.55 ? "sign on" : "sign");
      title.textContent = `${this.names[node]}: ${node < units ? "potential" : "input"} ${shown(value)}`;
    });
  }

  paintSynapses() {
    const scale = this.episode.heading.scale, chosen = this.selected;
    const values = this.lines.map(({ kind, k }) => Math.abs(this.parts[kind][k]));
    // More lines than these are drawn slowly and hide each other: the strongest have to do.
    const least = values.length > MOST_LINES ? values.sort((a, b) => b - a)[MOST_LINES] / scale : 0;
    for (const { line, from, to, kind, k } of this.lines) {
      const value = this.parts[kind][k], share = Math.min(1, Math.abs(value) / scale);
      const own = chosen < 0 || from === chosen || to === chosen;
      const hidden = share < Math.max(0.02, least) && !(own && chosen >= 0);
      line.setAttribute("class", hidden ? "weak" : value < 0 ? "neg" : "pos");
      if (hidden) continue;
      line.setAttribute("stroke-width", (0.5 + 3.5 * share).toFixed(2));
      line.setAttribute("stroke-opacity", (own ? 0.12 + 0.88 * share : 0.04 + 0.16 * share).toFixed(3));
      line.firstChild.textContent = `${this.names[from]} to ${this.names[to]}: ${signed(value)}`;
    }
  }

  paintTraces() {
    const [left, width] = this.span, { time, end } = this.episode;
    this.cursor.style.transform = `translateX(${left + (width * time[this.t]) / end}px)`;
    for (const { row, name, values, value, isNeuron } of this.rows) {
      value.textContent = shown(values[this.t]);
      row.classList.toggle("selected", Boolean(isNeuron) && name === this.names[this.selected]);
    }
  }

  paintPictures() {
    for (const figure of this.root.querySelectorAll(".picture")) {
      const pictures = this.episode.pictures[figure.dataset.kind];
      figure.hidden = !pictures;
      if (pictures) this.paintPicture(figure, pictures);
    }
  }

  paintPicture(figure, { stride, files }) {
    const i = Math.min(Math.floor(this.t / stride), files.length - 1), image = figure.querySelector("img");
    const source = `data:image/webp;base64,${files[i]}`, title = figure.dataset.title;
    if (image.getAttribute("src") === source) return;
    image.src = source;
    image.alt = `${title} at ${fixed(this.episode.time[i * stride])} s`;
    figure.querySelector("figcaption").textContent = `${title}, ${fixed(this.episode.time[i * stride])} s`;
  }

  paintNeuron() {
    const root = this.find(".neuron"), node = this.selected, units = this.subject.neurons.length;
    root.hidden = node < 0;
    if (node < 0) return;
    const sensory = node >= units, value = `${sensory ? "input" : "potential"} ${shown(this.value(node))}`;
    this.find(".neuron h3").textContent = `${this.names[node]}, ${this.layer(node)} neuron: ${value}`;
    if (this.traced !== `${this.r} ${this.e} ${node}`) this.buildNeuronTrace(node);
    const now = (1000 * this.episode.time[this.t]) / this.episode.end;
    this.find(".neuron .trace .now").setAttribute("d", `M${now} 0V100`);
    this.find(".tau").hidden = sensory;
    if (!sensory) this.paintTau(node);
    const into = this.lines.filter(({ to }) => to === node), out = this.lines.filter(({ from }) => from === node);
    const contribution = ({ kind, k }) => this.parts[kind][k];
    const rows = into.map((synapse) => [this.names[synapse.from], contribution(synapse)]);
    if (!sensory) rows.push(["memory", this.parts.memory[node]], ["leak", this.parts.leak[node]]);
    const given = out.map((synapse) => [this.names[synapse.to], contribution(synapse)]);
    const full = Math.max(...[...rows, ...given].map(([, value]) => Math.abs(value)), 1e-9);
    this.paintBars(".receives", rows, full);
    this.paintBars(".gives", given, full);
    this.paintRules(node);
  }

  buildNeuronTrace(node) {
    const units = this.subject.neurons.length, axis = make("div", { class: "axis" });
    const plot = draw("svg", { class: "plot", preserveAspectRatio: "none", role: "img" });
    const [title, ...column] = node < units
      ? ["potential [no unit]", "potentials", node] : ["sensory input [no unit]", "sensory", node - units];
    const values = this.episode.column(...column), [low, high] = extent(values);
    this.traced = `${this.r} ${this.e} ${node}`;
    plot.setAttribute("aria-label", `${this.names[node]} over the episode, from ${between(low, high)}`);
    this.drawLine(plot, values, low, high, 100);
    plot.append(draw("path", { class: "now" }));
    plot.addEventListener("pointerdown", (event) => this.drag(event, plot));
    axis.append(...["0 s", "time [s]", `${digits(this.episode.end)} s`].map((text) => make("span", {}, text)));
    const heading = make("p", { class: "axis-title" }, `${title}, seen from ${between(low, high)}`);
    this.find(".neuron .trace").replaceChildren(heading, plot, axis);
  }

  // Where the time constant is between its bounds, on a logarithmic scale.
  paintTau(node) {
    const tau = timeConstants(this.subject, this.potentials, this.inputs)[node], { bounds } = this.subject;
    const low = bounds.tau_low[node], high = bounds.tau_high[node];
    const share = Math.log(tau / low) / Math.log(high / low || 2);
    this.find(".tau p").textContent = `time constant ${digits(tau)} s, possible ${digits(low)} to ${digits(high)} s`;
    this.find(".tau .needle").setAttribute("x", 100 * Math.min(1, Math.max(0, share)) - 0.5);
  }

  paintBars(selector, rows, full) {
    const top = rows.filter(([, value]) => value).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 8);
    const root = this.find(selector);
    root.hidden = !top.length;
    const items = top.map(([name, value]) => {
      const item = make("tr"), cell = make("td"), width = (50 * Math.abs(value)) / full;
      const bar = draw("svg", { viewBox: "-50 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
      const side = value < 0 ? { x: -width, class: "neg" } : { x: 0, class: "pos" };
      bar.append(draw("rect", { y: 1, width, height: 8, ...side }));
      cell.append(bar);
      item.append(make("th", { scope: "row" }, name), make("td", { class: "number" }, signed(value)), cell);
      return item;
    });
    root.querySelector("tbody").replaceChildren(...items);
  }

  paintRules(node) {
    const rules = this.subject.rules[this.names[node]] || [], root = this.find(".rules");
    root.hidden = !rules.length;
    root.querySelector("ul").replaceChildren(...rules.map((rule) => {
      const holds = this.episode.holds(rule, this.t);
      return make("li", holds ? { "aria-current": "true" } : {}, `${rule.text}${holds ? " (now)" : ""}`);
    }));
  }
}
