// The algebra of ncp_rl/audit/explain.py and cell.py, for one step of one episode, in float64 as there.

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function inflated(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// Arrays of a recording's description, which come as float32 in base64.
function unpack(subject) {
  const read = (object, names) => names.forEach((name) => {
    object[name] = new Float32Array(bytesOf(object[name]).buffer);
  });
  ["synapses", "sensory"].forEach((kind) => read(subject[kind], ["w", "sigma", "mu", "erev"]));
  read(subject, ["cm", "gleak", "vleak", "readout", "bias"]);
  read(subject.bounds, Object.keys(subject.bounds));
}

function openness(synapses, potentials) {
  const { source, sigma, mu } = synapses;
  return Float64Array.from(source, (i, k) => 0.5 * (1 + Math.tanh(0.5 * sigma[k] * (potentials[i] - mu[k]))));
}

function conductance(cell, opened, sensoryOpened) {
  const total = Float64Array.from(cell.gleak, (g) => g + cell.epsilon);
  cell.synapses.destination.forEach((j, k) => { total[j] += cell.synapses.w[k] * opened[k]; });
  cell.sensory.destination.forEach((j, k) => { total[j] += cell.sensory.w[k] * sensoryOpened[k]; });
  return total;
}

// Seconds in which each neuron follows its input.
function timeConstants(cell, potentials, inputs) {
  const total = conductance(cell, openness(cell.synapses, potentials), openness(cell.sensory, inputs));
  return total.map((g, j) => cell.cm[j] / g);
}

// What each synapse, the leak and memory contributed to the potentials at the end of a step.
function explainStep(cell, previous, inputs, elapsed) {
  const units = cell.cm.length, delta = elapsed / cell.unfolds;
  const parts = {
    synapses: new Float64Array(cell.synapses.source.length),
    sensory: new Float64Array(cell.sensory.source.length),
    leak: new Float64Array(units),
    retention: new Float64Array(units).fill(1),
  };
  const sensoryOpened = openness(cell.sensory, inputs);
  let potentials = Float64Array.from(previous);
  for (let substep = 0; substep < cell.unfolds; substep++) {
    const opened = openness(cell.synapses, potentials), next = new Float64Array(units);
    const denominator = conductance(cell, opened, sensoryOpened).map((g, j) => cell.cm[j] + delta * g);
    for (let j = 0; j < units; j++) {
      const kept = cell.cm[j] / denominator[j], leak = (delta / denominator[j]) * cell.gleak[j] * cell.vleak[j];
      parts.leak[j] = parts.leak[j] * kept + leak;
      parts.retention[j] *= kept;
      next[j] = kept * potentials[j] + leak;
    }
    for (const [kind, open] of [["synapses", opened], ["sensory", sensoryOpened]]) {
      const { destination, w, erev } = cell[kind], sums = parts[kind];
      for (let k = 0; k < open.length; k++) {
        const j = destination[k], current = (delta / denominator[j]) * w[k] * open[k] * erev[k];
        sums[k] = sums[k] * (cell.cm[j] / denominator[j]) + current;
        next[j] += current;
      }
    }
    potentials = next;
  }
  parts.memory = parts.retention.map((m, j) => m * previous[j]);
  return parts;
}

// Parts of sum_j weights_j v_j + offset by source, as `Explanation._drivers`; neurons first, then sensory inputs.
function driversOf(cell, parts, weights, offset) {
  const units = cell.cm.length, values = new Float64Array(units + cell.sensory_names.length);
  cell.synapses.source.forEach((i, k) => { values[i] += parts.synapses[k] * weights[cell.synapses.destination[k]]; });
  cell.sensory.source.forEach((i, k) => {
    values[units + i] += parts.sensory[k] * weights[cell.sensory.destination[k]];
  });
  const dot = (array) => array.reduce((sum, x, j) => sum + x * weights[j], 0);
  const drivers = { values, memory: dot(parts.memory), leak: dot(parts.leak), offset };
  drivers.total = values.reduce((sum, x) => sum + x, 0) + drivers.memory + drivers.leak + offset;
  return drivers;
}

function readout(cell, action) {
  const weights = new Float64Array(cell.cm.length), [first, last] = cell.layers.motor;
  for (let m = first; m < last; m++) weights[m] = cell.readout[action * (last - first) + m - first];
  return weights;
}

function only(cell, neuron) {
  const weights = new Float64Array(cell.cm.length);
  weights[neuron] = 1;
  return weights;
}

// As Python's format(x, ".2f"), which rounds halves (they are odd eighths) to even.
function fixed(x) {
  if (Math.abs(x * 8) % 2 === 1) {
    const floor = Math.floor(Math.abs(x) * 100);
    return (x < 0 ? "-" : "") + ((floor + (floor % 2)) / 100).toFixed(2);
  }
  return Object.is(x, -0) ? "-0.00" : x.toFixed(2);
}

const signed = (x) => (x < 0 || Object.is(x, -0) ? "" : "+") + fixed(x);

function strongest(values, n) {
  const order = [...values.keys()].sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]));
  return order.slice(0, n).filter((i) => values[i]);
}

// As `Explanation._parts`.
function partsText(cell, drivers) {
  const names = [...cell.neurons, ...cell.sensory_names], top = strongest(drivers.values, 3);
  const sum = (indices) => indices.reduce((total, i) => total + drivers.values[i], 0);
  const others = sum([...drivers.values.keys()]) - sum(top);
  const texts = top.map((i) => `${names[i]} ${signed(drivers.values[i])}`);
  if (Math.abs(others) >= 0.005) texts.push(`others ${signed(others)}`);
  texts.push(`memory ${signed(drivers.memory)}`, `leak ${signed(drivers.leak)}`);
  if (Math.abs(drivers.offset) >= 0.005) texts.push(`offset ${signed(drivers.offset)}`);
  return texts.join(", ");
}

// As `Explanation.sentence`.
function sentence(cell, parts, potentials, time, action) {
  const drivers = driversOf(cell, parts, readout(cell, action), cell.bias[action]);
  const text = `${cell.actions[action]} ${fixed(drivers.total)} at ${fixed(time)} s: ${partsText(cell, drivers)}`;
  const [neuron] = strongest(drivers.values.subarray(0, cell.cm.length), 1);
  if (neuron === undefined) return text;
  const causes = partsText(cell, driversOf(cell, parts, only(cell, neuron), 0));
  return `${text}; ${cell.neurons[neuron]} (${fixed(potentials[neuron])}) was driven by ${causes}`;
}
