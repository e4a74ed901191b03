// An episode of a recording, its arrays and what follows from them, and how elements of the page are made.

const SVG = "http://www.w3.org/2000/svg";

// An element with attributes and text; nothing is ever parsed as HTML.
function make(tag, attributes = {}, text = null, space = null) {
  const element = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
}

const draw = (tag, attributes, text) => make(tag, attributes, text, SVG);
const between = (low, high) => {
  const decimals = Math.min(6, Math.max(0, 1 - Math.floor(Math.log10((high - low || Math.abs(high) || 1) / 2))));
  return [low, high].map((x) => x.toFixed(decimals).replace(/^-(0\.?0*)$/, "$1")).join(" to ");
};
const extent = (values) => [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
const shown = (x) => fixed(x).replace(/^-(0\.00)$/, "$1");
const digits = (x) => (Number.isFinite(x) ? Number(x.toPrecision(3)).toString() : "none");

class Episode {
  static cache = new Map();

  static load(r, e) {
    const id = `episode-${r}-${e}`;
    if (!Episode.cache.has(id)) {
      const packed = inflated(document.getElementById(id).textContent);
      Episode.cache.set(id, packed.then((buffer) => new Episode(report.subjects[r], e, buffer, r)));
    }
    return Episode.cache.get(id);
  }

  constructor(subject, e, buffer, r) {
    const T = subject.episodes[e].steps, units = subject.neurons.length;
    let at = 0;
    const take = (n) => new Float32Array(buffer, 4 * (at += n) - 4 * n, n);
    this.subject = subject;
    this.heading = subject.episodes[e];
    this.steps = T;
    this.start = take(units);
    this.elapsed = take(T);
    this.potentials = take(T * units);
    this.sensory = take(T * subject.sensory_names.length);
    this.observation = take(T * subject.observations.length);
    this.action = take(T * subject.n_actions);
    this.reward = take(T);
    let seconds = 0;
    this.time = Float64Array.from(this.elapsed, (dt) => (seconds += dt));
    this.end = seconds || 1;
    const pictures = document.getElementById(`pictures-${r}-${e}`);
    this.pictures = pictures ? JSON.parse(pictures.textContent) : {};
  }

  row(name, t) {
    const width = this[name].length / this.steps;
    return this[name].subarray(t * width, (t + 1) * width);
  }

  // Values of column i at all steps.
  column(name, i) {
    const width = this[name].length / this.steps;
    return Float64Array.from({ length: this.steps }, (_, t) => this[name][t * width + i]);
  }

  mean(action, t) {
    const weights = readout(this.subject, action), potentials = this.row("potentials", t);
    return weights.reduce((sum, w, j) => sum + w * potentials[j], this.subject.bias[action]);
  }

  explain(t) {
    const previous = t ? this.row("potentials", t - 1) : this.start;
    return explainStep(this.subject, previous, this.row("sensory", t), this.elapsed[t]);
  }

  // What rules speak of: observed quantities and their finite differences.
  quantity(name, t) {
    const names = this.subject.observations, i = names.indexOf(name);
    if (i >= 0) return this.row("observation", t)[i];
    const of = names.indexOf(name.replace(/^d_/, "").replace(/\/dt$/, ""));
    if (of < 0) return NaN;
    if (!t || !(this.elapsed[t] > 0)) return 0;
    return (this.row("observation", t)[of] - this.row("observation", t - 1)[of]) / this.elapsed[t];
  }

  holds(rule, t) {
    return rule.conditions.every(([name, low, high]) => {
      const value = this.quantity(name, t);
      return (low === null || value > low) && (high === null || value <= high);
    });
  }
}
