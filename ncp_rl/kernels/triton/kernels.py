"""The Triton kernels of the scan. `backend.py` launches them and says how they work together.

Names: T steps, N sequences, U neurons, `n_unfolds` K, all as in the contract. A program owns a batch of `BATCH`
sequences, n (BATCH,), and computes tiles of (sequence, row, lane): row and lane as in `slots.py`. Indices
that grow with N are int64.

With A = gleak vleak + current of the sensory synapses, B = gleak + their conductance + epsilon, and delta seconds
per unfold, an unfold is

    v' = (cm v + delta (A + sum w s erev)) / d,   d = cm + delta (B + sum w s),   s = sigmoid(sigma (v - mu)),

and with p = g / d and q = p v' for the gradient g of v', the gradients are

    of v_i:      p_i cm_i + delta sum_j (p_j erev_ij - q_j) w_ij s_ij (1 - s_ij) sigma_ij,
    of cm:       p (v - v'),
    of delta:    sum_j p_j A_j - q_j B_j + sum_ij (p_j erev_ij - q_j) w_ij s_ij,
    of A and B:  delta p and -delta q.

Nothing is divided by delta or cm, so that both may be zero.
"""

# Triton is not typed, and a kernel's arguments are Triton's to type.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(exponent):
    """1 / (1 + 2^exponent) by the two fastest special functions, exp2 and 1 / sqrt.

    To 4e-7 relative by their documented errors, no worse than by exp and division, at half the instructions.
    """
    root = tl.rsqrt(1.0 + tl.exp2(exponent))
    return root * root


@triton.jit
def load_synapse(parameters, synapses, n_synapses):
    """w, slope = -sigma log2(e), mu and erev of those at `synapses`, as in `lanes.py`. Where none is, w is 0."""
    synapse = tl.load(synapses)
    exists = synapse >= 0
    synapse = tl.where(exists, synapse, ~synapse)
    w = tl.where(exists, tl.load(parameters + synapse), 0.0)
    slope = tl.load(parameters + n_synapses + synapse) * -LOG2_E
    return w, slope, tl.load(parameters + 2 * n_synapses + synapse), tl.load(parameters + 3 * n_synapses + synapse)


@triton.jit
def _synapses(parameters, peers, slot, exists, ROWS: tl.constexpr, LANES: tl.constexpr):
    """w, sigma, mu, erev (1, ROWS, LANES) and peer of the synapses in `slot`; zeros, which add nothing, for none.

    The four parameters stand side by side in memory, for one load of 16 bytes.
    """
    four = tl.arange(0, 4)
    row = tl.load(parameters + slot[:, :, None] * 4 + four[None, None, :], mask=exists[:, :, None], other=0.0)
    even, odd = tl.split(tl.reshape(row, [ROWS, LANES, 2, 2]))
    w, mu = tl.split(even)
    sigma, erev = tl.split(odd)
    peer = tl.load(peers + slot, mask=exists, other=0)
    return w[None, :, :], sigma[None, :, :], mu[None, :, :], erev[None, :, :], peer[None, :, :]


@triton.jit
def _incoming(
    v, in_batch, block, counts, trips, peers, parameters, n_rows, BATCH: tl.constexpr, ROWS: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Sums of w s erev and of w s over the synapses that end in a block of rows: two (BATCH, ROWS).

    `v` (BATCH,) points at the presynaptic potentials of each sequence.
    """
    row = block * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, LANES)
    count = tl.load(counts + row)
    current = tl.zeros([BATCH, ROWS, LANES], tl.float32)
    conductance = tl.zeros([BATCH, ROWS, LANES], tl.float32)
    for trip in range(tl.load(trips + block)):
        exists = (trip * LANES + lane)[None, :] < count[:, None]  # (ROWS, LANES)
        slot = (trip * n_rows + row)[:, None] * LANES + lane[None, :]
        w, sigma, mu, erev, peer = _synapses(parameters, peers, slot, exists, ROWS, LANES)
        mask = in_batch[:, None, None] & exists[None, :, :]
        ws = w * sigmoid((sigma * -LOG2_E) * (tl.load(v[:, None, None] + peer, mask=mask, other=0.0) - mu))
        current += ws * erev
        conductance += ws
    return tl.sum(current, axis=2), tl.sum(conductance, axis=2)


@triton.jit
def _outgoing(
    v, p, q, in_batch, block, counts, trips, peers, parameters, n_rows, BATCH: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Over the synapses that start in a block of rows, with drive = (p erev - q) w s: two (BATCH, ROWS).

    The sums of drive (1 - s) sigma and of drive. `v` (BATCH, ROWS) are the rows' potentials, `p` and `q` (BATCH,)
    point at the values of each sequence's neurons.
    """
    row = block * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, LANES)
    count = tl.load(counts + row)
    gradient = tl.zeros([BATCH, ROWS, LANES], tl.float32)
    total = tl.zeros([BATCH, ROWS, LANES], tl.float32)
    for trip in range(tl.load(trips + block)):
        exists = (trip * LANES + lane)[None, :] < count[:, None]  # (ROWS, LANES)
        slot = (trip * n_rows + row)[:, None] * LANES + lane[None, :]
        w, sigma, mu, erev, peer = _synapses(parameters, peers, slot, exists, ROWS, LANES)
        mask = in_batch[:, None, None] & exists[None, :, :]
        s = sigmoid((sigma * -LOG2_E) * (v[:, :, None] - mu))
        p_of_peer = tl.load(p[:, None, None] + peer, mask=mask, other=0.0)
        q_of_peer = tl.load(q[:, None, None] + peer, mask=mask, other=0.0)
        # Where no synapse is, v may still be NaN.
        drive = tl.where(mask, (p_of_peer * erev - q_of_peer) * w * s, 0.0)
        gradient += tl.where(mask, drive * (1.0 - s) * sigma, 0.0)
        total += drive
    return tl.sum(gradient, axis=2), tl.sum(total, axis=2)


@triton.jit
def _seconds_per_unfold(elapsed_time, sample, in_batch, n_unfolds: tl.constexpr, BATCH: tl.constexpr):
    """Delta (BATCH,) of `sample` t N + n; elapsed_time (T, N), or None for 1 second."""
    if elapsed_time is None:
        return tl.full([BATCH], 1.0 / n_unfolds, tl.float32)
    else:
        return tl.load(elapsed_time + sample, mask=in_batch, other=0.0) / n_unfolds


@triton.jit(do_not_specialize=["n_samples"])
def leak_and_senses(
    leak_current, leak_conductance, inputs, neuronal, parameters, members, owns, first, trips, synapses, peers,
    n_samples, n_inputs, n_neurons, n_synapses, n_groups, EPSILON: tl.constexpr, REPEATS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """A and B (T N, U) from inputs (T N, S). Programs: batches of samples times groups of neurons as in `lanes.py`.

    A lane computes the synapses of one neuron for REPEATS samples, which share the loads of a synapse's numbers. Groups
    vary fastest: those of the same samples run together, so that their parts of a line of A or B reach memory as one.
    """
    lane = tl.arange(0, 32)
    row = lane % ROWS
    group = tl.program_id(0) % n_groups
    sample = (tl.program_id(0) // n_groups).to(tl.int64) * (REPEATS * (32 // ROWS)) + lane // ROWS
    xs, currents, conductances = (), (), ()
    for i in tl.static_range(REPEATS):
        # Beyond the last sample the last is computed again, and not stored: no load needs a mask.
        xs += (inputs + tl.minimum(sample + i * (32 // ROWS), n_samples - 1) * n_inputs,)
        currents += (tl.zeros([32], tl.float32),)
        conductances += (tl.zeros([32], tl.float32),)
    at = tl.load(first + group) * ROWS + row
    for _ in range(tl.load(trips + group)):
        w, slope, mu, erev = load_synapse(parameters, synapses + at, n_synapses)
        drive = w * erev
        peer = tl.load(peers + at)
        new_currents, new_conductances = (), ()
        for i in tl.static_range(REPEATS):
            s = sigmoid(slope * (tl.load(xs[i] + peer) - mu))
            new_currents += (currents[i] + drive * s,)
            new_conductances += (conductances[i] + w * s,)
        currents, conductances = new_currents, new_conductances
        at += ROWS
    has_synapses = tl.load(owns + group * ROWS + row) != 0
    neuron = tl.load(members + group * ROWS + row)
    is_neuron = neuron >= 0
    gleak = tl.load(neuronal + n_neurons + neuron, mask=is_neuron, other=0.0)
    vleak = tl.load(neuronal + 2 * n_neurons + neuron, mask=is_neuron, other=0.0)
    for i in tl.static_range(REPEATS):
        here = sample + i * (32 // ROWS)
        at = here * n_neurons + neuron
        mask = (here < n_samples) & is_neuron
        tl.store(leak_current + at, tl.where(has_synapses, currents[i], 0.0) + gleak * vleak, mask=mask)
        tl.store(leak_conductance + at, tl.where(has_synapses, conductances[i], 0.0) + (gleak + EPSILON), mask=mask)


@triton.jit
def _unfold_index(m, n, n_sequences, n_unfolds: tl.constexpr, SAVE: tl.constexpr):
    """Where the potentials before unfold `m` of all unfolds lie: in (T, N, K), or in (N, 2) if they are not saved."""
    if SAVE:
        return (m // n_unfolds * n_sequences + n) * n_unfolds + m % n_unfolds
    else:
        return n * 2 + m % 2


@triton.jit(do_not_specialize=["n_steps", "n_sequences"])
def forward_scan(
    potentials, states, denominators, state, leak_current, leak_conductance, episode_starts, elapsed_time, neuronal,
    counts, trips, peers, parameters, n_steps, n_sequences, n_neurons, n_rows, n_unfolds: tl.constexpr,
    SAVE: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Potentials (T, N, U) after each step.

    `states` holds the potentials before each unfold, through which the program's threads also see each other's
    results: (T, N, K, U) with SAVE, of which the backward makes use, as of `denominators` of the same shape;
    otherwise (N, 2, U), used in turns.
    """
    n_sequences = n_sequences.to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BATCH + tl.arange(0, BATCH)
    in_batch = n < n_sequences

    reset = tl.zeros([BATCH], tl.int1)
    if episode_starts is not None:
        reset = tl.load(episode_starts + n, mask=in_batch, other=0) != 0
    for block in tl.static_range(2):
        neuron = block * ROWS + tl.arange(0, ROWS)
        mask = in_batch[:, None] & (neuron < n_neurons)[None, :]
        v = tl.load(state + n[:, None] * n_neurons + neuron[None, :], mask=mask & ~reset[:, None], other=0.0)
        first = n * (n_unfolds if SAVE else 2)
        tl.store(states + first[:, None] * n_neurons + neuron[None, :], v, mask=mask)
    tl.debug_barrier()

    for m in range(n_steps * n_unfolds):
        t = m // n_unfolds
        sample = t * n_sequences + n
        ends_step = m % n_unfolds == n_unfolds - 1
        has_next = m + 1 < n_steps * n_unfolds
        delta = _seconds_per_unfold(elapsed_time, sample, in_batch, n_unfolds, BATCH)[:, None]
        if episode_starts is not None:
            reset = tl.load(episode_starts + sample + n_sequences, mask=in_batch & ends_step & has_next, other=0) != 0
        before = _unfold_index(m, n, n_sequences, n_unfolds, SAVE) * n_neurons
        after = _unfold_index(m + 1, n, n_sequences, n_unfolds, SAVE) * n_neurons
        for block in tl.static_range(2):
            neuron = block * ROWS + tl.arange(0, ROWS)
            mask = in_batch[:, None] & (neuron < n_neurons)[None, :]
            current, conductance = _incoming(
                states + before, in_batch, block, counts, trips, peers, parameters, n_rows, BATCH, ROWS, LANES
            )
            at = sample[:, None] * n_neurons + neuron[None, :]
            current += tl.load(leak_current + at, mask=mask, other=0.0)
            conductance += tl.load(leak_conductance + at, mask=mask, other=0.0)
            cm = tl.load(neuronal + neuron, mask=neuron < n_neurons, other=1.0)[None, :]
            v = tl.load(states + before[:, None] + neuron[None, :], mask=mask, other=0.0)
            denominator = cm + delta * conductance
            # The same as the module's equation, and no seconds change not a bit of v.
            v += delta * (current - v * conductance) / denominator
            if SAVE:
                tl.store(denominators + before[:, None] + neuron[None, :], denominator, mask=mask)
            tl.store(potentials + at, v, mask=mask & ends_step)
            v = tl.where(reset[:, None], 0.0, v)
            tl.store(states + after[:, None] + neuron[None, :], v, mask=mask & has_next)
        # The next unfold reads what other threads have just written.
        tl.debug_barrier()


@triton.jit
def _begin_unfold(
    m, gradient, n, neuron, mask, p, q, carried, grad_cm, potentials, states, denominators, neuronal, n_sequences,
    n_neurons, n_unfolds: tl.constexpr,
):  # fmt: skip
    """From the gradient (BATCH, ROWS) of the potentials after unfold `m`: p and q, and what needs no other neuron."""
    t = m // n_unfolds
    k = m % n_unfolds
    sample = t * n_sequences + n
    at = (sample * n_unfolds + k)[:, None] * n_neurons + neuron[None, :]
    own = n[:, None] * n_neurons + neuron[None, :]
    ends_step = k == n_unfolds - 1
    v = tl.load(states + at, mask=mask, other=0.0)
    # Potentials after the unfold: what stands before the next, or the output of the step.
    within_step = tl.load(states + at + n_neurons, mask=mask & (not ends_step), other=0.0)
    v_after = tl.load(potentials + sample[:, None] * n_neurons + neuron[None, :], mask=mask & ends_step, other=0.0)
    v_after = tl.where(ends_step, v_after, within_step)
    cm = tl.load(neuronal + neuron, mask=neuron < n_neurons, other=1.0)[None, :]
    p_here = gradient / tl.load(denominators + at, mask=mask, other=1.0)
    tl.store(p + at, p_here, mask=mask)
    tl.store(q + at, p_here * v_after, mask=mask)
    # Next to what other threads may still have to read.
    tl.store(carried + m % 2 * n_sequences * n_neurons + own, p_here * cm, mask=mask)
    tl.store(grad_cm + own, tl.load(grad_cm + own, mask=mask, other=0.0) + p_here * (v - v_after), mask=mask)


@triton.jit(do_not_specialize=["n_steps", "n_sequences"])
def reverse_scan(
    p, q, grad_state, grad_delta, carried, grad_cm, grad, grad_last, potentials, states, denominators,
    episode_starts, elapsed_time, neuronal, counts, trips, peers, parameters, n_steps, n_sequences, n_neurons, n_rows,
    n_unfolds: tl.constexpr, BATCH: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Gives p and q (T, N, K, U), the gradient of the initial state (N, U), of cm by sequence, of delta (T, N).

    Of delta only what the synapses between neurons give. `grad_cm` is added to; `grad_last` (N, U) reaches the
    potentials of the last step besides `grad` (T, N, U); `carried` (2, N, U) is scratch, used in turns: the gradient
    that a neuron passes on to its own past.
    """
    n_sequences = n_sequences.to(tl.int64)
    n = tl.program_id(0).to(tl.int64) * BATCH + tl.arange(0, BATCH)
    in_batch = n < n_sequences
    last = n_steps * n_unfolds - 1

    for block in tl.static_range(2):
        neuron = block * ROWS + tl.arange(0, ROWS)
        mask = in_batch[:, None] & (neuron < n_neurons)[None, :]
        sample = last // n_unfolds * n_sequences + n
        g = tl.load(grad + sample[:, None] * n_neurons + neuron[None, :], mask=mask, other=0.0)
        g += tl.load(grad_last + n[:, None] * n_neurons + neuron[None, :], mask=mask, other=0.0)
        _begin_unfold(
            last, g, n, neuron, mask, p, q, carried, grad_cm, potentials, states, denominators, neuronal,
            n_sequences, n_neurons, n_unfolds,
        )  # fmt: skip

    drive_of_step = tl.zeros([BATCH], tl.float32)
    for backwards in range(n_steps * n_unfolds):
        # p and q of this unfold were written by other threads.
        tl.debug_barrier()
        m = last - backwards
        t = m // n_unfolds
        sample = t * n_sequences + n
        starts_step = m % n_unfolds == 0
        delta = _seconds_per_unfold(elapsed_time, sample, in_batch, n_unfolds, BATCH)[:, None]
        at = (sample * n_unfolds + m % n_unfolds) * n_neurons
        reset = tl.zeros([BATCH], tl.int1)
        if episode_starts is not None:
            reset = tl.load(episode_starts + sample, mask=in_batch & starts_step, other=0) != 0
        for block in tl.static_range(2):
            neuron = block * ROWS + tl.arange(0, ROWS)
            mask = in_batch[:, None] & (neuron < n_neurons)[None, :]
            own = n[:, None] * n_neurons + neuron[None, :]
            v = tl.load(states + at[:, None] + neuron[None, :], mask=mask, other=0.0)
            g, drive = _outgoing(
                v, p + at, q + at, in_batch, block, counts, trips, peers, parameters, n_rows, BATCH, ROWS, LANES
            )
            drive_of_step += tl.sum(drive, axis=1)
            g = delta * g + tl.load(carried + m % 2 * n_sequences * n_neurons + own, mask=mask, other=0.0)
            g = tl.where(reset[:, None], 0.0, g)
            if m > 0:
                # A step's first unfold passes its gradient on to the output of the step before.
                g += tl.load(
                    grad + (sample - n_sequences)[:, None] * n_neurons + neuron[None, :],
                    mask=mask & starts_step, other=0.0,
                )  # fmt: skip
                _begin_unfold(
                    m - 1, g, n, neuron, mask, p, q, carried, grad_cm, potentials, states, denominators, neuronal,
                    n_sequences, n_neurons, n_unfolds,
                )  # fmt: skip
            else:
                tl.store(grad_state + own, g, mask=mask)
        if grad_delta is not None:
            tl.store(grad_delta + sample, drive_of_step, mask=in_batch & starts_step)
            drive_of_step = tl.where(starts_step, 0.0, drive_of_step)


@triton.jit(do_not_specialize=["n_samples", "samples_per_program"])
def synapse_gradients(
    partials, v, p, q, elapsed_time, parameters, source, destination, n_samples, samples_per_program, n_synapses,
    n_neurons, n_unfolds: tl.constexpr, SAMPLES: tl.constexpr,
    SYNAPSES: tl.constexpr,
):  # fmt: skip
    """Gradients of w, sigma, mu, erev, summed over each program's samples: (programs along samples, 4, E).

    Samples are rows of v, p and q (samples, U), one for each unfold. Programs: (blocks of synapses, parts of the
    samples).
    """
    synapse = tl.program_id(0) * SYNAPSES + tl.arange(0, SYNAPSES)
    exists = synapse < n_synapses
    w = tl.load(parameters + synapse, mask=exists, other=0.0)
    sigma = tl.load(parameters + n_synapses + synapse, mask=exists, other=0.0)
    mu = tl.load(parameters + 2 * n_synapses + synapse, mask=exists, other=0.0)
    erev = tl.load(parameters + 3 * n_synapses + synapse, mask=exists, other=0.0)
    i = tl.load(source + synapse, mask=exists, other=0)
    j = tl.load(destination + synapse, mask=exists, other=0)
    grad_w = tl.zeros([SAMPLES, SYNAPSES], tl.float32)
    grad_sigma = tl.zeros([SAMPLES, SYNAPSES], tl.float32)
    grad_mu = tl.zeros([SAMPLES, SYNAPSES], tl.float32)
    grad_erev = tl.zeros([SAMPLES, SYNAPSES], tl.float32)
    first = tl.program_id(1).to(tl.int64) * samples_per_program
    for offset in range(0, samples_per_program, SAMPLES):
        sample = first + offset + tl.arange(0, SAMPLES)
        is_sample = sample < n_samples
        mask = is_sample[:, None] & exists[None, :]
        delta = _seconds_per_unfold(elapsed_time, sample // n_unfolds, is_sample, n_unfolds, SAMPLES)[:, None]
        distance = tl.load(v + sample[:, None] * n_neurons + i[None, :], mask=mask, other=0.0) - mu[None, :]
        p_here = delta * tl.load(p + sample[:, None] * n_neurons + j[None, :], mask=mask, other=0.0)
        q_here = delta * tl.load(q + sample[:, None] * n_neurons + j[None, :], mask=mask, other=0.0)
        s = sigmoid((sigma * -LOG2_E)[None, :] * distance)
        grad_ws = p_here * erev[None, :] - q_here
        slope = grad_ws * w[None, :] * s * (1.0 - s)
        grad_w += grad_ws * s
        grad_sigma += slope * distance
        grad_mu -= slope * sigma[None, :]
        grad_erev += p_here * w[None, :] * s
    at = partials + tl.program_id(1).to(tl.int64) * 4 * n_synapses + synapse
    tl.store(at, tl.sum(grad_w, axis=0), mask=exists)
    tl.store(at + n_synapses, tl.sum(grad_sigma, axis=0), mask=exists)
    tl.store(at + 2 * n_synapses, tl.sum(grad_mu, axis=0), mask=exists)
    tl.store(at + 3 * n_synapses, tl.sum(grad_erev, axis=0), mask=exists)
