"""Test the CUDA kernels on the GPU of this machine, and time them: one command, four to five minutes.

    python scripts/gpu_check.py                        # every part
    python scripts/gpu_check.py --parts tests scans    # some of them

Each part runs in a process of its own, so that one that fails, or loses the GPU, leaves the others alone; the file is
written after each. It needs torch, triton, numba, numpy and pytest. What needs more (ncps, Gymnasium and
Stable-Baselines3, compute-sanitizer) is left out and said so where it is not installed.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ncp_rl import LTC, AutoNCP
from ncp_rl.cuda_graph import capture
from ncp_rl.extras import is_installed

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/kernels/test_triton_gpu.py", "tests/kernels/test_scan.py")
#: Tests of what stands on the kernels, where Gymnasium and Stable-Baselines3 are installed.
POLICY_TESTS = ("tests/test_policy_step.py", "tests/test_readings.py", "tests/test_policy.py")
SANITIZED = "tests/kernels/test_triton_gpu.py::TestNumbers::test_circuits"
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
#: Plugins of pytest that happen to be installed might warn, which our settings make an error.
PLAIN = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
N_MOTOR = 4
#: Where layers are timed; tests take the CPU.
DEVICE = "cuda"
Part = Callable[[], dict[str, Any]]


class Shape(NamedTuple):
    """U neurons, S inputs, N sequences of T steps."""

    units: int
    n_inputs: int
    n_sequences: int
    n_steps: int


SHAPES = (Shape(32, 16, 16, 128), Shape(64, 32, 64, 128), Shape(64, 32, 4096, 128))
#: Share of steps that start an episode, at which an LSTM would have to be started anew, and the shape timed with it.
RESETS, RESET_SHAPE = 0.03, Shape(64, 256, 128, 128)
STEP_SHAPES = tuple(Shape(64, 32, n, 1) for n in (1, 64, 4096))
#: ncps builds dense (N, U, U) tensors in each unfold, 200 GB of them beyond this many sequences.
NCPS_SEQUENCES = 64


def main(arguments: list[str] | None = None, parts: Mapping[str, Part] | None = None) -> int:
    """Run the parts, print, save. Returns 0, or 1 if a part failed, or 2 if there is no GPU."""
    parts = PARTS if parts is None else parts
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts), metavar="PART")
    parser.add_argument("--out", type=Path, default=ROOT / "results/bench_gpu.json")
    parser.add_argument("--seconds", type=float, default=100.0, help="after which a part is given up")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            f"error: PyTorch {torch.__version__} finds no CUDA device, so nothing was checked; run this on a machine "
            "with an NVIDIA GPU, its driver and a CUDA build of PyTorch. `make gpu-compile` checks what needs none.",
            file=sys.stderr,
        )
        return 2
    return run_parts({name: parts[name] for name in args.parts}, describe(), args.out, args.seconds)


def run_parts(parts: Mapping[str, Part], machine: dict[str, Any], out: Path, seconds: float) -> int:
    """Run each part in a process of its own; write what is known after each. Returns whether one failed, 0 or 1."""
    report: dict[str, Any] = {"machine": machine, "parts": {}}
    print(json.dumps(machine, indent=2), flush=True)
    for name, part in parts.items():
        started = time.perf_counter()
        result = run_alone(part, seconds) | {"seconds": round(time.perf_counter() - started, 1)}
        report["parts"][name] = result
        print(f"\n{name}: {json.dumps(result, indent=2)}", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2) + "\n")
    failed = [name for name, result in report["parts"].items() if "error" in result]
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall parts passed", flush=True)
    return int(bool(failed))


def run_alone(part: Part, seconds: float) -> dict[str, Any]:
    """What a part returns, or {"error": ...}."""
    with futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        future = pool.submit(part)
        try:
            return future.result(timeout=seconds)
        except futures.TimeoutError:
            for process in list(pool._processes.values()):
                process.kill()
            return {"error": f"given up after {seconds:g} s"}
        except Exception:
            # Whatever goes wrong in a part belongs into the report, and the other parts run.
            return {"error": traceback.format_exc()}


def describe() -> dict[str, Any]:
    """What the figures were measured on."""
    import triton

    gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": gpu.name, "multiprocessors": gpu.multi_processor_count, "memory_gib": gpu.total_memory >> 30,
        "devices": torch.cuda.device_count(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(), "triton": triton.__version__,
    }  # fmt: skip


def tests() -> dict[str, Any]:
    """The CUDA tests of the kernels, and of policies where what these need is installed, captured steps among them."""
    missing = missing_packages("gymnasium", "sb3_contrib", "mcap", "sklearn", "plotly")
    result = run_tests("triton or gpu or across_devices", *TESTS, *(() if missing else POLICY_TESTS))
    return result | {"left out": f"tests of policies: {missing}"} if missing else result


def run_tests(chosen: str, *files: str) -> dict[str, Any]:
    """Run tests side by side where pytest-xdist is installed; compiled kernels are shared by the processes."""
    command = [*PYTEST, "-k", chosen, *files]
    if is_installed("xdist"):
        command += ["-p", "xdist.plugin", "-n", str(os.cpu_count())]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | PLAIN, capture_output=True, text=True, check=False)
    summary = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    result: dict[str, Any] = {"result": done.stdout.strip().rpartition("\n")[2], "details": summary}
    return result if done.returncode == 0 else result | {"error": done.stdout[-4000:] + done.stderr[-2000:]}


def sanitizer() -> dict[str, Any]:
    """A few tests under compute-sanitizer, which finds reads and writes outside of tensors."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"left out": "compute-sanitizer is not installed"}
    command = [tool, "--error-exitcode", "9", *PYTEST, "-x", "-k", "U9 or U33 or U128", SANITIZED]
    environment = os.environ | PLAIN | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return {"result": done.stdout[-300:]} if done.returncode == 0 else {"error": done.stdout[-4000:]}


def scans() -> dict[str, Any]:
    """Whole sequences in milliseconds, forward and with the backward pass, beside cuDNN's LSTM and ncps."""
    return {"/".join(map(str, shape)): time_scan(shape) for shape in SHAPES}


def kernels() -> dict[str, Any]:
    """Where the milliseconds of a whole sequence go: each kernel of our layer's forward and backward pass."""
    result: dict[str, Any] = {}
    for shape in SHAPES:
        layer, inputs = ltc(shape), torch.randn(shape.n_steps, shape.n_sequences, shape.n_inputs, device=DEVICE)
        run = functools.partial(outputs, layer, inputs)
        result["/".join(map(str, shape))] = kernel_milliseconds(functools.partial(back, run, layer))
    return result


def resets() -> dict[str, Any]:
    """Sequences in which episodes start, in milliseconds; the LSTM runs without them."""
    starts = torch.rand(RESET_SHAPE.n_steps, RESET_SHAPE.n_sequences, device=DEVICE) < RESETS
    return {"/".join(map(str, RESET_SHAPE)): time_scan(RESET_SHAPE, starts)}


def steps() -> dict[str, Any]:
    """One step of all environments in microseconds, launched as usual and from a CUDA graph: the layer, the policy."""
    result: dict[str, Any] = {}
    for shape in STEP_SHAPES:
        layer, inputs = ltc(shape), torch.randn(*shape[3:], shape.n_sequences, shape.n_inputs, device=DEVICE)
        usual = functools.partial(layer, inputs)
        with torch.no_grad():
            result[str(shape.n_sequences)] = {
                "layer": {
                    "usual_us": 1e3 * milliseconds(usual),
                    "graph_us": 1e3 * milliseconds(capture(usual, inputs.device).replay),
                },
                "policy": time_policy(shape),
            }
    return result


def time_policy(shape: Shape) -> dict[str, Any]:
    """A whole policy's step in microseconds: as training calls it, without its checks, and from a CUDA graph."""
    if missing := missing_packages("gymnasium", "sb3_contrib"):
        return {"left out": missing}
    from gymnasium.spaces import Box
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    from ncp_rl import NCPPolicy, PolicyStep
    from ncp_rl.policy import frozen_standardization

    torch.manual_seed(0)
    observed, acted = (Box(-1.0, 1.0, (n,)) for n in (shape.n_inputs, N_MOTOR))
    policy = NCPPolicy(observed, acted, lambda _: 1e-3, wiring=AutoNCP(shape.units)).to(DEVICE)
    observation = torch.randn(shape.n_sequences, shape.n_inputs, device=DEVICE)
    starts = torch.zeros(shape.n_sequences, device=DEVICE)
    h, c, critic_h, critic_c = torch.zeros(4, 1, shape.n_sequences, shape.units, device=DEVICE)
    forward = functools.partial(policy, observation, RNNStates((h, c), (critic_h, critic_c)), starts)
    result = {}
    with torch.no_grad(), frozen_standardization(policy):
        result["forward_us"] = 1e3 * milliseconds(forward)
    for name, captured in (("usual_us", False), ("graph_us", DEVICE == "cuda")):
        step = PolicyStep(policy, shape.n_sequences, captured=captured)
        result[name] = 1e3 * milliseconds(functools.partial(step, observation, starts))
    return result


def missing_packages(*names: str) -> str:
    """Which of these are not installed, as a sentence; empty where all are."""
    missing = [name for name in names if not is_installed(name)]
    return f"{' and '.join(missing)} not installed" if missing else ""


def loop() -> dict[str, Any]:
    """Environment steps per second of the whole training loop, the policy on the GPU and on the CPU."""
    if missing := missing_packages("gymnasium", "sb3_contrib"):
        return {"left out": missing}
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    from ncp_rl import NCPPolicy

    rates = {}
    for device in ("cuda", "cpu"):
        env = make_vec_env("Pendulum-v1", 8, seed=0)
        model = RecurrentPPO(NCPPolicy, env, n_steps=256, batch_size=512, n_epochs=5, device=device, seed=0)
        model.learn(2048)
        started = time.perf_counter()
        model.learn(4096, reset_num_timesteps=False)
        rates[f"{device}_steps_per_s"] = 4096 / (time.perf_counter() - started)
    return rates


#: Parts by name, in the order in which they run.
PARTS: dict[str, Part] = {
    part.__name__: part for part in (tests, sanitizer, scans, kernels, resets, steps, loop)
}  # fmt: skip


def ltc(shape: Shape) -> LTC:
    """Our layer on the GPU, without maps of inputs and outputs, which an LSTM has not either."""
    torch.manual_seed(0)
    return LTC(AutoNCP(shape.units).build(shape.n_inputs, N_MOTOR), input_map=False, motor_map=False).to(DEVICE)


def time_scan(shape: Shape, episode_starts: Tensor | None = None) -> dict[str, Any]:
    """Milliseconds and memory of each contender; of ours the share of the ceiling, and how much faster it is."""
    ours, inputs = ltc(shape), torch.randn(shape.n_steps, shape.n_sequences, shape.n_inputs, device=DEVICE)
    lstm = nn.LSTM(shape.n_inputs, shape.units).to(DEVICE)
    contenders: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "ours": (ours, functools.partial(outputs, ours, inputs, episode_starts=episode_starts)),
        "cudnn_lstm": (lstm, functools.partial(outputs, lstm, inputs)),
    }
    if episode_starts is None and shape.n_sequences <= NCPS_SEQUENCES and is_installed("ncps"):
        theirs = ncps_layer(shape)
        contenders["ncps"] = (theirs, functools.partial(outputs, theirs, inputs))
    result: dict[str, Any] = {}
    for name, (module, run) in contenders.items():
        with torch.no_grad():
            forward = milliseconds(run)
        both = functools.partial(back, run, module)
        result[name] = {"forward_ms": forward, "both_ms": milliseconds(both), "both_mib": peak_mebibytes(both)}
    sigmoids_ms = 1e3 * evaluations(ours, shape) / sigmoids_per_second()
    result["share_of_ceiling"] = {
        "forward": sigmoids_ms / result["ours"]["forward_ms"], "both": 3 * sigmoids_ms / result["ours"]["both_ms"],
    }  # fmt: skip
    result["times_as_fast_as"] = {
        name: {kind: result[name][kind] / result["ours"][kind] for kind in ("forward_ms", "both_ms")}
        for name in contenders
        if name != "ours"
    }
    return result


def ncps_layer(shape: Shape) -> nn.Module:
    """The layer of ncps, of the same size."""
    from ncps.torch import LTC as NcpsLTC
    from ncps.wirings import AutoNCP as NcpsAutoNCP

    maps: dict[str, Any] = dict(input_mapping=None, output_mapping=None)
    layer: nn.Module = NcpsLTC(shape.n_inputs, NcpsAutoNCP(shape.units, N_MOTOR), batch_first=False, **maps)
    return layer.to(DEVICE)


def outputs(module: nn.Module, *inputs: Tensor, **options: Tensor | None) -> Tensor:
    """What a recurrent layer gives for each step, without its last state."""
    outputs: Tensor = module(*inputs, **options)[0]
    return outputs


def back(run: Callable[[], Tensor], module: nn.Module) -> None:
    """One forward and backward pass."""
    module.zero_grad(set_to_none=True)
    run().sum().backward()


def evaluations(layer: LTC, shape: Shape) -> int:
    """Sigmoids that a forward pass must evaluate; a backward pass evaluates each of them once or twice again."""
    from ncp_rl.kernels.triton.backend import synapse_evaluations

    lists = layer.packed().synapses
    return synapse_evaluations(lists, shape.n_steps, shape.n_sequences, ode_unfolds=layer.ode_unfolds)


def sigmoids_per_second() -> float:
    """What the GPU's special functions allow: two for each sigmoid, 16 a cycle and multiprocessor."""
    from triton.runtime import driver

    gpu = driver.active.utils.get_device_properties(0)
    return 8e3 * float(gpu["multiprocessor_count"] * gpu["sm_clock_rate"])


def peak_mebibytes(run: Callable[[], object]) -> float:
    """MiB of the GPU that a run takes at its peak, beside what was taken before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def kernel_milliseconds(run: Callable[[], object], n_runs: int = 10) -> dict[str, float]:
    """Mean milliseconds of a run in each of our kernels, in all others together, and of the Python code around them.

    The last is what the processor needs to launch them all, while the GPU computes: the larger of the two counts.
    """
    from ncp_rl.kernels.triton import kernels as streaming
    from ncp_rl.kernels.triton import resident

    for _ in range(3):
        run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(n_runs):
        run()
    launched = time.perf_counter() - started
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(n_runs):
            run()
        torch.cuda.synchronize()
    own = {name for module in (streaming, resident) for name in vars(module)}
    times: dict[str, float] = {}
    for event in profiled.key_averages():
        name = event.key if event.key in own else "others"
        times[name] = times.get(name, 0.0) + event.device_time_total / n_runs / 1e3
    return times | {"launching": 1e3 * launched / n_runs}


def milliseconds(run: Callable[[], object], seconds: float = 0.5) -> float:
    """Median time of a run on the GPU, the first ones, which compile and load, left out."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - started < seconds and len(times) < 200):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
