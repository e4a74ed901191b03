"""The scans of circuits that fit into the registers of a warp: one neuron a lane, as `lanes.py` lays them out.

The equations and names are those of `kernels.py`. A value that every neuron has is a tuple of blocks, each (32,): one
number for each lane of the warp. Synapses are tuples of slots, each (32,), which are loaded once and stay in registers.
Lanes see each other's values by shuffles, so that nothing waits at a barrier, and an unfold touches no memory but that
of what it saves.

Where elapsed time is None, all unfolds have the same delta, and sums that it multiplies are multiplied in the end.
"""

# Triton is not typed, and a kernel's arguments are Triton's to type.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# mypy: disable-error-code="var-annotated, assignment, misc, operator, index"

from __future__ import annotations

import triton
import triton.language as tl

from ncp_rl.kernels.triton import lanes
from ncp_rl.kernels.triton.kernels import LOG2_E, load_synapse, sigmoid

WARP: tl.constexpr = tl.constexpr(lanes.WARP)
OWNS: tl.constexpr = tl.constexpr(lanes.OWNS)
HELPS: tl.constexpr = tl.constexpr(lanes.HELPS)
IS_HELPED: tl.constexpr = tl.constexpr(lanes.IS_HELPED)


@triton.constexpr_function
def _nth(numbers, i):
    """One of several numbers known when compiled."""
    return numbers[i]


@triton.constexpr_function
def _first_slot(trips, block):
    return sum(trips[:block])


@triton.constexpr_function
def _lines(words):
    """Most lines of 32 words that so many lie in, and one for the last word."""
    return -(-words // 32) + 1


@triton.jit
def _zeros(COUNT: tl.constexpr):
    """A tuple of COUNT zeros (32,)."""
    zeros = ()
    for _ in tl.static_range(COUNT):
        zeros += (tl.zeros([WARP], tl.float32),)
    return zeros


@triton.jit
def _no_sums(SLOTS: tl.constexpr):
    """Four zeros (32,) for each slot."""
    sums = ()
    for _ in tl.static_range(SLOTS):
        sums += (_zeros(4),)
    return sums


@triton.jit
def _of_neurons(start, neurons, is_neuron, other, BLOCKS: tl.constexpr):
    """What lies at `start` + neuron: BLOCKS of (32,), `other` where there is none."""
    values = ()
    for block in tl.static_range(BLOCKS):
        values += (tl.load(start + neurons[block], mask=is_neuron[block], other=other),)
    return values


@triton.jit
def _of_neurons_if_any(start, at, neurons, is_neuron, BLOCKS: tl.constexpr):
    """As `_of_neurons` from `start` + `at` on, zeros where `start` is None."""
    if start is None:
        return _zeros(BLOCKS)
    else:
        return _of_neurons(start + at, neurons, is_neuron, 0.0, BLOCKS)


@triton.jit
def _store_neurons(start, values, neurons, is_neuron, BLOCKS: tl.constexpr):
    for block in tl.static_range(BLOCKS):
        tl.store(start + neurons[block], values[block], mask=is_neuron[block])


@triton.jit
def _plus(values, others, weight, BLOCKS: tl.constexpr):
    """`values` + `weight` times `others`, each BLOCKS of (32,)."""
    sums = ()
    for block in tl.static_range(BLOCKS):
        sums += (values[block] + weight * others[block],)
    return sums


@triton.jit
def _cleared(values, reset, BLOCKS: tl.constexpr):
    """`values`, BLOCKS of (32,), zero in the lanes of `reset` (32,)."""
    cleared = ()
    for block in tl.static_range(BLOCKS):
        cleared += (tl.where(reset, 0.0, values[block]),)
    return cleared


@triton.jit
def _rows(neurons, partners, roles, neuronal, row, home, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """Return for every row its neuron, the lane of its partner, its role and its cm: BLOCKS of (32,) each."""
    ids, lanes_of_partners, bits, cms = (), (), (), ()
    for block in tl.static_range(BLOCKS):
        neuron = tl.load(neurons + block * ROWS + row)
        ids += (neuron,)
        lanes_of_partners += (home + tl.load(partners + block * ROWS + row),)
        bits += (tl.load(roles + block * ROWS + row),)
        cms += (tl.load(neuronal + neuron, mask=neuron >= 0, other=1.0),)
    return ids, lanes_of_partners, bits, cms


@triton.jit
def _are_neurons(neuron, in_batch, BLOCKS: tl.constexpr):
    """Which rows hold a neuron of a sequence that there is: BLOCKS of (32,)."""
    masks = ()
    for block in tl.static_range(BLOCKS):
        masks += (in_batch & (neuron[block] >= 0),)
    return masks


@triton.jit
def _take(values, at, BLOCKS: tl.constexpr):
    """Return from other lanes' `values`, BLOCKS of (32,), the one in lane `at` % 32 of block `at` // 32."""
    taken = tl.gather(values[0], at & 31, 0)
    for block in tl.static_range(1, BLOCKS):
        taken = tl.where(at >= block * WARP, tl.gather(values[block], at & 31, 0), taken)
    return taken


@triton.jit
def _synapses(parameters, synapses, peers, n_synapses, row, home, ROWS: tl.constexpr, SLOTS: tl.constexpr):
    """w, slope = -sigma log2(e), mu, erev and peer, as `_take` wants it, of every slot. Without a synapse, w = 0."""
    ws, slopes, mus, erevs, ats = (), (), (), (), ()
    for slot in tl.static_range(SLOTS):
        w, slope, mu, erev = load_synapse(parameters, synapses + slot * ROWS + row, n_synapses)
        peer = tl.load(peers + slot * ROWS + row)
        ws += (w,)
        slopes += (slope,)
        mus += (mu,)
        erevs += (erev,)
        ats += (peer // ROWS * WARP + home + peer % ROWS,)
    return ws, slopes, mus, erevs, ats


@triton.jit
def _unfold_rows(head, tail, partner, role, TAIL: tl.constexpr):
    """Sums over a row's own synapses, from those over a lane's first slots and its last, which may be its partner's."""
    total = tl.where((role & OWNS) != 0, head + tl.where((role & HELPS) != 0, 0.0, tail), 0.0)
    if TAIL > 0:
        total += tl.where((role & IS_HELPED) != 0, tl.gather(tail, partner, 0), 0.0)
    return total


@triton.jit
def _incoming(
    v, ws, slopes, mus, drives, ats, partner, role, FIRST: tl.constexpr, TRIPS: tl.constexpr, TAIL: tl.constexpr,
    PEER_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Sums of w s erev and of w s over the synapses that end in a block's neurons, two (32,); drive = w erev."""
    current, conductance = tl.zeros([WARP], tl.float32), tl.zeros([WARP], tl.float32)
    of_tail, conductance_of_tail = tl.zeros([WARP], tl.float32), tl.zeros([WARP], tl.float32)
    for i in tl.static_range(FIRST, FIRST + TRIPS):
        s = sigmoid(slopes[i] * (_take(v, ats[i], PEER_BLOCKS) - mus[i]))
        if i < FIRST + TRIPS - TAIL:
            current = tl.fma(drives[i], s, current)
            conductance = tl.fma(ws[i], s, conductance)
        else:
            of_tail = tl.fma(drives[i], s, of_tail)
            conductance_of_tail = tl.fma(ws[i], s, conductance_of_tail)
    return (
        _unfold_rows(current, of_tail, partner, role, TAIL),
        _unfold_rows(conductance, conductance_of_tail, partner, role, TAIL),
    )


@triton.jit(do_not_specialize=["n_steps", "n_sequences"])
def forward_scan(
    potentials, states, denominators, state, leak_current, leak_conductance, episode_starts, elapsed_time, neuronal,
    parameters, neurons, synapses, peers, partners, roles, n_steps, n_sequences, n_neurons, n_synapses,
    n_unfolds: tl.constexpr, SAVE: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, TRIPS: tl.constexpr,
    TAILS: tl.constexpr, PEER_BLOCKS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Potentials (T, N, U) after each step; with SAVE, states and denominators (T, N, K, U) of each unfold.

    AHEAD unfolds are compiled one after the other: 1, or all of a step. Multiply-adds are written out, and the compiler
    makes none of its own: it might choose others with SAVE than without, and potentials would differ in the last bit.
    """
    n_sequences = n_sequences.to(tl.int64)
    lane = tl.arange(0, WARP)
    row, home = lane % ROWS, lane // ROWS * ROWS
    n = tl.program_id(0).to(tl.int64) * (WARP // ROWS) + lane // ROWS
    in_batch = n < n_sequences
    ws, slopes, mus, erevs, ats = _synapses(
        parameters, synapses, peers, n_synapses, row, home, ROWS, _first_slot(TRIPS, BLOCKS)
    )
    drives = ()
    for i in tl.static_range(_first_slot(TRIPS, BLOCKS)):
        drives += (ws[i] * erevs[i],)
    neuron, partner, role, cm = _rows(neurons, partners, roles, neuronal, row, home, ROWS, BLOCKS)
    is_neuron = _are_neurons(neuron, in_batch, BLOCKS)
    v = _of_neurons(state + n * n_neurons, neuron, is_neuron, 0.0, BLOCKS)
    leak_and_senses = _of_neurons(leak_current + n * n_neurons, neuron, is_neuron, 0.0, BLOCKS)
    conductances = _of_neurons(leak_conductance + n * n_neurons, neuron, is_neuron, 0.0, BLOCKS)
    for t in range(n_steps):
        sample = t * n_sequences + n
        # What the next step starts from is under way while this one is computed.
        following = (sample + tl.where(t + 1 < n_steps, n_sequences, 0)) * n_neurons
        next_leak_and_senses = _of_neurons(leak_current + following, neuron, is_neuron, 0.0, BLOCKS)
        next_conductances = _of_neurons(leak_conductance + following, neuron, is_neuron, 0.0, BLOCKS)
        delta = 1.0 / n_unfolds
        if elapsed_time is not None:
            delta = tl.load(elapsed_time + sample, mask=in_batch, other=0.0) / n_unfolds
        if episode_starts is not None:
            v = _cleared(v, tl.load(episode_starts + sample, mask=in_batch, other=0) != 0, BLOCKS)
        for k in tl.range(n_unfolds, loop_unroll_factor=AHEAD):
            after, divisors = (), ()
            for block in tl.static_range(BLOCKS):
                current, conductance = leak_and_senses[block], conductances[block]
                if _nth(TRIPS, block) > 0:
                    synaptic_current, synaptic_conductance = _incoming(
                        v, ws, slopes, mus, drives, ats, partner[block], role[block], _first_slot(TRIPS, block),
                        _nth(TRIPS, block), _nth(TAILS, block), PEER_BLOCKS,
                    )  # fmt: skip
                    current += synaptic_current
                    conductance += synaptic_conductance
                denominator = tl.fma(conductance, delta, cm[block])
                divisors += (denominator,)
                # The same as the equation of `kernels.py`, and no seconds change not a bit of v.
                after += (v[block] + delta * tl.fma(-v[block], conductance, current) / denominator,)
            if SAVE:
                at = (sample * n_unfolds + k) * n_neurons
                _store_neurons(states + at, v, neuron, is_neuron, BLOCKS)
                _store_neurons(denominators + at, divisors, neuron, is_neuron, BLOCKS)
            v = after
        _store_neurons(potentials + sample * n_neurons, v, neuron, is_neuron, BLOCKS)
        leak_and_senses, conductances = next_leak_and_senses, next_conductances


@triton.jit
def _through(distance, p, q, w, slope, erev, weight, sums):
    """Back through a synapse, with p and q of the neuron where it ends; distance is v - mu, slope -sigma log2(e).

    Gives drive (1 - s) and drive = (p erev - q) w s, (32,) each, and `sums` with their share: sums of weight p s, of
    weight q s, of weight drive (1 - s), and of this times the distance.
    """
    s = sigmoid(slope * distance)
    drive = (p * erev - q) * (w * s)
    rise = drive - drive * s
    sum_p, sum_q, sum_rise, sum_sigma = sums
    weighted = weight * rise
    s = weight * s
    return rise, drive, (sum_p + s * p, sum_q + s * q, sum_rise + weighted, sum_sigma + weighted * distance)


@triton.jit
def _outgoing(
    v, p, q, ws, slopes, mus, erevs, ats, sums, partner, role, weight, FIRST: tl.constexpr, TRIPS: tl.constexpr,
    TAIL: tl.constexpr, PEER_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Over the synapses that start in a block's neurons, with drive = (p erev - q) w s; `v` (32,) are of the block.

    Gives the sums of drive (1 - s) sigma and of drive, two (32,), and for each slot `sums` with this unfold's share.
    """
    v_of_tail = v
    if TAIL > 0:
        v_of_tail = tl.where((role & HELPS) != 0, tl.gather(v, partner, 0), v)
    gradient, total = tl.zeros([WARP], tl.float32), tl.zeros([WARP], tl.float32)
    gradient_of_tail, total_of_tail = tl.zeros([WARP], tl.float32), tl.zeros([WARP], tl.float32)
    added = ()
    for i in tl.static_range(FIRST, FIRST + TRIPS):
        distance = v - mus[i]
        if i >= FIRST + TRIPS - TAIL:
            distance = v_of_tail - mus[i]
        p_of_peer, q_of_peer = _take(p, ats[i], PEER_BLOCKS), _take(q, ats[i], PEER_BLOCKS)
        rise, drive, new = _through(distance, p_of_peer, q_of_peer, ws[i], slopes[i], erevs[i], weight, sums[i])
        added += (new,)
        if i >= FIRST + TRIPS - TAIL:
            gradient_of_tail += rise * slopes[i]
            total_of_tail += drive
        else:
            gradient += rise * slopes[i]
            total += drive
    # The slopes are -sigma log2(e).
    gradient = _unfold_rows(gradient, gradient_of_tail, partner, role, TAIL) * (-1.0 / LOG2_E)
    return gradient, _unfold_rows(total, total_of_tail, partner, role, TAIL), added


@triton.jit
def _ahead(start, unfold, n_neurons, neuron, is_neuron, other, BLOCKS: tl.constexpr, AHEAD: tl.constexpr):
    """The numbers of neurons in `unfold` (32,) and in those before it: AHEAD of BLOCKS of (32,)."""
    values = ()
    for before in tl.static_range(AHEAD):
        at = (unfold - before) * n_neurons
        values += (_of_neurons(start + at, neuron, is_neuron, other, BLOCKS),)
    return values


@triton.jit
def _unfold_ahead(t, k, n, n_sequences, n_unfolds: tl.constexpr, AHEAD: tl.constexpr):
    """Where in (T, N, K) unfold `k` of step `t` has its AHEAD-th before it, 1 or K; some place, where it has none."""
    at = (t * n_sequences + n) * n_unfolds + k
    if AHEAD == n_unfolds:
        return at - tl.where(t > 0, n_sequences * n_unfolds, 0)
    else:
        return tl.where(k > 0, at - 1, at - tl.where(t > 0, (n_sequences - 1) * n_unfolds + 1, 0))


@triton.jit
def _store_neuronal(
    at, neuronal, neuron, grad_cm, grad_current, grad_conductance, scale, n_neurons, BLOCKS: tl.constexpr
):  # fmt: skip
    """The gradients of cm, gleak and vleak, at (3, blocks, 32), from those of cm, A and B."""
    for block in tl.static_range(BLOCKS):
        exists = neuron[block] >= 0
        gleak = tl.load(neuronal + n_neurons + neuron[block], mask=exists, other=0.0)
        vleak = tl.load(neuronal + 2 * n_neurons + neuron[block], mask=exists, other=0.0)
        of_current = scale * grad_current[block]
        tl.store(at + block * WARP, grad_cm[block])
        tl.store(at + (BLOCKS + block) * WARP, of_current * vleak + scale * grad_conductance[block])
        tl.store(at + (2 * BLOCKS + block) * WARP, of_current * gleak)


@triton.jit
def _prefetch(start, n_words, LINES: tl.constexpr):
    """Bring `n_words` from `start` on, in at most LINES lines of 32, into L2, without waiting for them."""
    for first in tl.static_range(0, LINES, WARP):
        word = tl.minimum((first + tl.arange(0, WARP)) * 32, n_words - 1)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [start + word], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def _prefetch_step(
    grad, potentials, states, denominators, t, group, n_sequences, n_neurons, n_unfolds: tl.constexpr,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """With PREFETCH, fetch what step `t` and its unfolds read of the sequences of a group; what lies before 0, at 0."""
    if PREFETCH:
        first = group.to(tl.int64) * (WARP // ROWS)
        n_words = (tl.minimum(n_sequences - first, WARP // ROWS) * n_neurons).to(tl.int32)
        at = (tl.where(t > 0, t, 0) * n_sequences + first) * n_neurons
        _prefetch(grad + at, n_words, _lines(WARP * BLOCKS))
        _prefetch(potentials + at, n_words, _lines(WARP * BLOCKS))
        _prefetch(states + at * n_unfolds, n_words * n_unfolds, _lines(WARP * BLOCKS * n_unfolds))
        _prefetch(denominators + at * n_unfolds, n_words * n_unfolds, _lines(WARP * BLOCKS * n_unfolds))


@triton.jit
def _store_synaptic(at, sums, ws, slopes, erevs, scale, SLOTS: tl.constexpr):
    """The gradients of w, sigma, mu and erev, at (4, slots, 32), from the sums of `reverse_scan`."""
    for i in tl.static_range(SLOTS):
        sum_p, sum_q, sum_rise, sum_sigma = sums[i]
        tl.store(at + i * WARP, scale * (erevs[i] * sum_p - sum_q))
        tl.store(at + (SLOTS + i) * WARP, scale * sum_sigma)
        # The slopes are -sigma log2(e).
        tl.store(at + (2 * SLOTS + i) * WARP, scale * (sum_rise * slopes[i]) * (1.0 / LOG2_E))
        tl.store(at + (3 * SLOTS + i) * WARP, scale * (ws[i] * sum_p))


@triton.jit(do_not_specialize=["n_steps", "n_sequences", "n_groups"])
def reverse_scan(
    p_of_step, q_of_step, grad_state, grad_delta, grad_params, grad, grad_last, potentials, states, denominators,
    episode_starts, elapsed_time, neuronal, parameters, neurons, synapses, peers, partners, roles, n_steps, n_sequences,
    n_groups, n_neurons, n_synapses, n_unfolds: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
    TRIPS: tl.constexpr, TAILS: tl.constexpr, PEER_BLOCKS: tl.constexpr, AHEAD: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """Carries the gradients of the potentials back through steps and unfolds, and sums those of the parameters.

    Gives p and q summed over the unfolds of each step (T, N, U); the gradient of the initial state (N, U); of that of
    delta what each neuron's outgoing synapses give (T, N, U); by program and lane (programs, 3 blocks + 4 slots, 32)
    those of cm, gleak and vleak, and of w, sigma, mu and erev in each slot. `grad_last` (N, U), where there is one,
    reaches the potentials of the last step besides `grad` (T, N, U). A lane computes the synapses that start in its
    neurons. Programs take the `n_groups` of 32 / ROWS sequences in turns. What the forward saved of an unfold is loaded
    AHEAD unfolds before it is needed: 1, or all of a step, which are then compiled one after the other. With PREFETCH
    all that a step reads is brought into L2 two steps before, since much waits for the loads: the machine code has six
    barriers for all that is under way, and whoever waits for a special function may wait for a load as well.
    """
    n_sequences = n_sequences.to(tl.int64)
    SLOTS: tl.constexpr = _first_slot(TRIPS, BLOCKS)
    lane = tl.arange(0, WARP)
    row, home = lane % ROWS, lane // ROWS * ROWS
    ws, slopes, mus, erevs, ats = _synapses(parameters, synapses, peers, n_synapses, row, home, ROWS, SLOTS)
    neuron, partner, role, cm = _rows(neurons, partners, roles, neuronal, row, home, ROWS, BLOCKS)
    grad_cm, grad_current, grad_conductance = _zeros(BLOCKS), _zeros(BLOCKS), _zeros(BLOCKS)
    # Of each slot those of `_through`.
    sums = _no_sums(SLOTS)

    for group in range(tl.program_id(0), n_groups, tl.num_programs(0)):
        n = (lane // ROWS + group * (WARP // ROWS)).to(tl.int64)
        in_batch = n < n_sequences
        is_neuron = _are_neurons(neuron, in_batch, BLOCKS)
        last = (n_steps - 1) * n_sequences + n
        last_unfold = last * n_unfolds + n_unfolds - 1
        vs = _ahead(states, last_unfold, n_neurons, neuron, is_neuron, 0.0, BLOCKS, AHEAD)
        divisors = _ahead(denominators, last_unfold, n_neurons, neuron, is_neuron, 1.0, BLOCKS, AHEAD)
        v_after = _of_neurons(potentials + last * n_neurons, neuron, is_neuron, 0.0, BLOCKS)
        of_output = _of_neurons(grad + last * n_neurons, neuron, is_neuron, 0.0, BLOCKS)
        g = _of_neurons_if_any(grad_last, n * n_neurons, neuron, is_neuron, BLOCKS)
        for backwards in range(n_steps):
            t = n_steps - 1 - backwards
            sample = t * n_sequences + n
            # What the step before starts from is under way while this one is computed.
            before = (sample - tl.where(t > 0, n_sequences, 0)) * n_neurons
            next_v_after = _of_neurons(potentials + before, neuron, is_neuron, 0.0, BLOCKS)
            next_of_output = _of_neurons(grad + before, neuron, is_neuron, 0.0, BLOCKS)
            _prefetch_step(
                grad, potentials, states, denominators, t - 2, group, n_sequences, n_neurons, n_unfolds, ROWS, BLOCKS,
                PREFETCH,
            )  # fmt: skip
            delta, weight = 1.0 / n_unfolds, 1.0
            if elapsed_time is not None:
                delta = tl.load(elapsed_time + sample, mask=in_batch, other=0.0) / n_unfolds
                weight = delta
            g = _plus(g, of_output, 1.0, BLOCKS)
            p_sums, q_sums, delta_sums = _zeros(BLOCKS), _zeros(BLOCKS), _zeros(BLOCKS)
            for k_backwards in tl.range(n_unfolds, loop_unroll_factor=AHEAD):
                at = _unfold_ahead(t, n_unfolds - 1 - k_backwards, n, n_sequences, n_unfolds, AHEAD) * n_neurons
                v, denominator = vs[0], divisors[0]
                # Triton knows no tuple with a star in it.
                vs = vs[1:] + (_of_neurons(states + at, neuron, is_neuron, 0.0, BLOCKS),)  # noqa: RUF005
                divisors = divisors[1:] + (  # noqa: RUF005
                    _of_neurons(denominators + at, neuron, is_neuron, 1.0, BLOCKS),
                )
                p, q, passed_on, change = (), (), (), ()
                for block in tl.static_range(BLOCKS):
                    p += (g[block] / denominator[block],)
                    q += (p[block] * v_after[block],)
                    passed_on += (p[block] * cm[block],)
                    change += (p[block] * (v[block] - v_after[block]),)
                grad_cm = _plus(grad_cm, change, 1.0, BLOCKS)
                grad_current = _plus(grad_current, p, weight, BLOCKS)
                grad_conductance = _plus(grad_conductance, q, -weight, BLOCKS)
                p_sums, q_sums = _plus(p_sums, p, 1.0, BLOCKS), _plus(q_sums, q, 1.0, BLOCKS)
                gradients, totals, new_sums = (), (), ()
                for block in tl.static_range(BLOCKS):
                    gradient, drive, added = _outgoing(
                        v[block], p, q, ws, slopes, mus, erevs, ats, sums, partner[block], role[block], weight,
                        _first_slot(TRIPS, block), _nth(TRIPS, block), _nth(TAILS, block), PEER_BLOCKS,
                    )  # fmt: skip
                    gradients += (gradient,)
                    totals += (drive,)
                    new_sums += added
                g, sums = _plus(passed_on, gradients, delta, BLOCKS), new_sums
                delta_sums = _plus(delta_sums, totals, 1.0, BLOCKS)
                v_after = v
            _store_neurons(p_of_step + sample * n_neurons, p_sums, neuron, is_neuron, BLOCKS)
            _store_neurons(q_of_step + sample * n_neurons, q_sums, neuron, is_neuron, BLOCKS)
            if grad_delta is not None:
                _store_neurons(grad_delta + sample * n_neurons, delta_sums, neuron, is_neuron, BLOCKS)
            if episode_starts is not None:
                g = _cleared(g, tl.load(episode_starts + sample, mask=in_batch, other=0) != 0, BLOCKS)
            v_after, of_output = next_v_after, next_of_output
        _store_neurons(grad_state + n * n_neurons, g, neuron, is_neuron, BLOCKS)

    # Where all samples weigh the same, their sums are weighted here.
    scale = 1.0
    if elapsed_time is None:
        scale = 1.0 / n_unfolds
    at = grad_params + tl.program_id(0).to(tl.int64) * ((3 * BLOCKS + 4 * SLOTS) * WARP) + lane
    _store_neuronal(at, neuronal, neuron, grad_cm, grad_current, grad_conductance, scale, n_neurons, BLOCKS)
    _store_synaptic(at + 3 * BLOCKS * WARP, sums, ws, slopes, erevs, scale, SLOTS)


@triton.jit(do_not_specialize=["n_samples"])
def sensory_gradients(
    grad_inputs, grad_sensory, inputs, p, q, elapsed_time, parameters, members, owns, synapses, peers, n_samples,
    n_inputs, n_neurons, n_synapses, n_groups_per_chunk, n_unfolds: tl.constexpr, ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """Gradients of inputs and sensory synapses, from the sums over the unfolds of p and q (T N, U).

    Of the inputs by chunk (chunks, T N, S); of w, sigma, mu and erev by program, group, slot and lane (programs,
    groups, 4, slots, 32). Programs: (groups of inputs as in `lanes.py`, parts of the samples). A lane computes the
    synapses that start in one input.
    """
    lane = tl.arange(0, WARP)
    row = lane % ROWS
    group = tl.program_id(0)
    ws, slopes, mus, erevs, ends = (), (), (), (), ()
    for slot in tl.static_range(SLOTS):
        at = (group * SLOTS + slot) * ROWS + row
        w, slope, mu, erev = load_synapse(parameters, synapses + at, n_synapses)
        ws += (w,)
        slopes += (slope,)
        mus += (mu,)
        erevs += (erev,)
        ends += (tl.load(peers + at),)
    member = tl.load(members + group * ROWS + row)
    has_synapses = tl.load(owns + group * ROWS + row) != 0
    chunk = (group // n_groups_per_chunk).to(tl.int64) * n_samples
    sums = _no_sums(SLOTS)
    stride = tl.num_programs(1) * (WARP // ROWS)
    for first in range(tl.program_id(1) * (WARP // ROWS), n_samples, stride):
        sample = (lane // ROWS + first).to(tl.int64)
        in_batch = sample < n_samples
        mask = in_batch & (member >= 0)
        x = tl.load(inputs + sample * n_inputs + member, mask=mask, other=0.0)
        delta, weight = 1.0 / n_unfolds, 1.0
        if elapsed_time is not None:
            delta = tl.load(elapsed_time + sample, mask=in_batch, other=0.0) / n_unfolds
            weight = delta
        p_of_sample, q_of_sample = p + sample * n_neurons, q + sample * n_neurons
        gradient = tl.zeros([WARP], tl.float32)
        new_sums = ()
        for slot in tl.static_range(SLOTS):
            p_of_end = tl.load(p_of_sample + ends[slot], mask=in_batch, other=0.0)
            q_of_end = tl.load(q_of_sample + ends[slot], mask=in_batch, other=0.0)
            rise, _, new = _through(
                x - mus[slot], p_of_end, q_of_end, ws[slot], slopes[slot], erevs[slot], weight, sums[slot]
            )  # fmt: skip
            gradient += rise * slopes[slot]
            new_sums += (new,)
        sums = new_sums
        gradient = tl.where(has_synapses, delta * (gradient * (-1.0 / LOG2_E)), 0.0)
        tl.store(grad_inputs + (chunk + sample) * n_inputs + member, gradient, mask=mask)
    scale = 1.0
    if elapsed_time is None:
        scale = 1.0 / n_unfolds
    at = (tl.program_id(1).to(tl.int64) * tl.num_programs(0) + group) * (4 * SLOTS * WARP) + lane
    _store_synaptic(grad_sensory + at, sums, ws, slopes, erevs, scale, SLOTS)
