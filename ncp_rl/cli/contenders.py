"""What `ncp-rl bench` times: a function for each part of its table."""

from __future__ import annotations

import ctypes
import functools
import itertools
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import ncp_envs  # noqa: F401  (registers ncp/ environments)
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor, nn

from ncp_rl import LTC, NCP, AutoNCP, NCPPolicy
from ncp_rl.cli.stopwatch import Group, Run, Timing, measure, resident
from ncp_rl.extras import is_installed
from ncp_rl.kernels.contract import Operands
from ncp_rl.kernels.numba import backend as numba_backend
from ncp_rl.kernels.numba.forward import forward_kernel
from ncp_rl.lstm import FastMlpLstmPolicy
from ncp_rl.policy import DEFAULT_WIRING
from ncp_rl.runs import RunConfig, make_envs, make_model

HAS_NCPS = is_installed("ncps")
SHAPES = ((32, 16, 16, 128), (64, 32, 64, 128))
N_MOTOR = 4
LOOP_ENV = "ncp/PendulumNoVel-v1"
LOOP: dict[str, Any] = dict(n_steps=256, batch_size=512, n_epochs=5, gamma=0.9, learning_rate=1e-3, seed=0)
N_ENVS = 8
N_CAR_STEPS = 500
#: Wirings of exported controllers: that of the camera driver of Lechner et al. (2020), and two sizes of the default.
CIRCUITS: dict[str, NCP | AutoNCP] = {
    "19 neurons": NCP(12, 6, sensory_fanout=6, inter_fanout=4, recurrent_command_synapses=6, motor_fanin=6),
    "32 neurons": DEFAULT_WIRING,
    "64 neurons": replace(DEFAULT_WIRING, units=64),
}


def layers(units: int, n_inputs: int) -> dict[str, nn.Module]:
    """Ours, PyTorch's LSTM of equal hidden size, and, where installed, ncps' LTC with our weights."""
    torch.manual_seed(0)
    peers: dict[str, nn.Module] = {}
    if HAS_NCPS:
        from ncps.torch import LTC as NcpsLTC
        from ncps.wirings import AutoNCP as NcpsAutoNCP

        # Without maps of inputs and outputs, which an LSTM has not either.
        maps: dict[str, Any] = dict(input_mapping=None, output_mapping=None)
        reference = NcpsLTC(n_inputs, NcpsAutoNCP(units, N_MOTOR), batch_first=False, **maps)
        ours, peers = LTC.from_ncps(reference), {"ncps.torch.LTC": reference}
    else:
        ours = LTC(AutoNCP(units).build(n_inputs, N_MOTOR), input_map=False)
    return {"ncp_rl.LTC": ours, "torch.nn.LSTM": nn.LSTM(n_inputs, units), **peers}


def scan(timing: Timing) -> list[Group]:
    """Whole sequences, forward and with the backward pass."""
    groups = []
    for units, n_inputs, n_sequences, n_steps in SHAPES:
        inputs = torch.randn(n_steps, n_sequences, n_inputs)
        modules = layers(units, n_inputs)
        shape = f"U/S/N/T = {units}/{n_inputs}/{n_sequences}/{n_steps}"
        forwards = {name: forward(module, inputs) for name, module in modules.items()}
        both = {name: forward_backward(module, inputs) for name, module in modules.items()}
        groups.append(measure(f"{shape}, forward", "ms", 1e3, forwards, timing))
        groups.append(measure(f"{shape}, forward + backward", "ms", 1e3, both, timing))
    return groups


def forward(module: nn.Module, inputs: Tensor) -> Run:
    """Run without gradients."""

    def run() -> None:
        with torch.no_grad():
            module(inputs)

    return run


def forward_backward(module: nn.Module, inputs: Tensor) -> Run:
    """Run with gradients of every parameter and of the inputs."""
    leaf = inputs.clone().requires_grad_()

    def run() -> None:
        module.zero_grad()
        leaf.grad = None
        module(leaf)[0].sum().backward()

    return run


def step(timing: Timing) -> list[Group]:
    """One step of one sequence without gradients, as a controller takes it."""
    modules = layers(32, 16)
    inputs, state = torch.randn(1, 1, 16), torch.zeros(1, 32)
    ltc = modules["ncp_rl.LTC"].eval()
    assert isinstance(ltc, LTC)
    with torch.no_grad():
        params, synapses, *_ = ltc.packed()
    operands = Operands(params, synapses, inputs, state, None, None, ltc.ode_unfolds)

    def raw() -> Tensor:
        return numba_backend.forward(operands, save=False)[0]

    h = state[None]
    contenders: dict[str, Run] = {
        "ncp_rl.LTC": functools.partial(ltc, inputs, state),
        "  its backend alone": raw,
        "  its compiled kernel alone": compiled_kernel(raw),
        "torch.nn.LSTM": functools.partial(modules["torch.nn.LSTM"], inputs, (h, h)),
    }
    if "ncps.torch.LTC" in modules:
        contenders["ncps.torch.LTC"] = functools.partial(modules["ncps.torch.LTC"], inputs, state)
    with torch.no_grad():
        return [measure("one step of one sequence, U/S = 32/16", "us", 1e6, contenders, timing)]


def compiled_kernel(run: Callable[[], Tensor]) -> Run:
    """The call of compiled code within `run`, with the same arguments again and again."""
    calls: list[Run] = []

    def recording_kernel(width: int) -> Callable[..., None]:
        return lambda *arguments: calls.append(functools.partial(forward_kernel(width), *arguments))

    with mock.patch.object(numba_backend, "forward_kernel", recording_kernel):
        potentials = run()

    def again() -> Tensor:
        calls[0]()
        return potentials  # Its memory must stay: arguments are addresses.

    return again


class NcpsPolicy(RecurrentActorCriticPolicy):
    """ncps' LTC inside RecurrentPPO as one would put it there by hand, with a feed-forward critic."""

    def __init__(self, observation_space: Any, action_space: Any, lr_schedule: Any, **kwargs: Any) -> None:
        """Build it with 32 neurons."""
        kwargs |= dict(lstm_hidden_size=32, enable_critic_lstm=False)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        from ncps.torch import LTC as NcpsLTC
        from ncps.wirings import AutoNCP as NcpsAutoNCP

        core = NcpsLTC(self.features_dim, NcpsAutoNCP(32, 1), batch_first=False)
        core.num_layers, core.hidden_size = 1, 32
        self.lstm_actor = core
        self.optimizer = self.optimizer_class(self.parameters(), lr=1e-3)  # type: ignore[call-arg]

    @staticmethod
    def _process_sequence(  # type: ignore[override]
        features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        n_sequences = lstm_states[0].shape[1]
        state, potentials = lstm_states[0][0], []
        starts = episode_starts.reshape(n_sequences, -1).T
        for x, start in zip(features.reshape(n_sequences, -1, features.shape[-1]).swapaxes(0, 1), starts, strict=True):
            _, state = lstm.rnn_cell(x, state * (1 - start)[:, None])
            potentials.append(state)
        return torch.stack(potentials, dim=1).flatten(0, 1), (state[None], lstm_states[1])


def loop(timing: Timing) -> list[Group]:
    """Whole training loops, in environment steps per second."""
    wiring = AutoNCP(units=32)
    recurrent: dict[str, tuple[Any, dict[str, Any]]] = {
        "RecurrentPPO, NCPPolicy-32, LTC critic": (NCPPolicy, dict(wiring=wiring)),
        "RecurrentPPO, NCPPolicy-32, MLP critic": (NCPPolicy, dict(wiring=wiring, critic="mlp")),
        "RecurrentPPO, MlpLstmPolicy-32": ("MlpLstmPolicy", dict(lstm_hidden_size=32)),
        "RecurrentPPO, FastMlpLstmPolicy-32": (FastMlpLstmPolicy, dict(lstm_hidden_size=32)),
    }
    if HAS_NCPS:
        recurrent["RecurrentPPO, ncps LTC-32 by hand, MLP critic"] = (NcpsPolicy, {})
    n_steps = N_ENVS * LOOP["n_steps"]
    models: dict[str, Any] = {"PPO, MlpPolicy (no memory)": PPO("MlpPolicy", loop_envs(), device="cpu", **LOOP)}
    for name, (policy, kwargs) in recurrent.items():
        models[name] = RecurrentPPO(policy, loop_envs(), device="cpu", policy_kwargs=kwargs, **LOOP)
    contenders: dict[str, Run] = {
        name: lambda model=model: model.learn(n_steps, reset_num_timesteps=False)  # type: ignore[misc]
        for name, model in models.items()
    }
    name = f"training loop, {LOOP_ENV}, {N_ENVS} envs"
    return [measure(name, "steps/s", -n_steps, contenders, timing)]


def rllib(timing: Timing) -> list[Group]:
    """Training loops by RLlib on Ray, with one env runner and with two, in environment steps per second."""
    from ncp_rl.distributed.cluster import ray_running
    from ncp_rl.distributed.rllib import Workers, algorithm_config, built

    settings = {name: value for name, value in LOOP.items() if name != "seed"}
    groups = []
    with ray_running(None, 3):
        for n_envs in (N_ENVS, 4 * N_ENVS):
            n_steps = n_envs * LOOP["n_steps"]
            config = RunConfig(LOOP_ENV, settings | dict(n_envs=n_envs, policy_kwargs=dict(wiring=dict(units=32))))
            model = make_model(config, make_envs(config, n_envs), "cpu")
            assert isinstance(model, RecurrentPPO)
            learn = functools.partial(model.learn, n_steps, reset_num_timesteps=False)
            contenders: dict[str, Run] = {"RecurrentPPO, one process": learn}
            with ExitStack() as stack:
                for runners in (1, 2):
                    spread = algorithm_config(config, model, Workers(runners=runners), modules=("ncp_rl.cli.worlds",))
                    algorithm = stack.enter_context(built(spread, model))
                    contenders[f"RLlib's PPO, {runners} env runner{'s' * (runners > 1)}"] = algorithm.train
                name = f"training loop, {LOOP_ENV}, {n_envs} envs, NCPPolicy-32"
                groups.append(measure(name, "steps/s", -n_steps, contenders, timing))
    return groups


def recording(timing: Timing) -> list[Group]:
    """Rollouts of training with and without a recording of every step, in microseconds per step of all environments."""
    from ncp_rl.recording import NeuronRecorder

    n_steps = 2048
    settings = LOOP | dict(n_steps=n_steps)
    model = RecurrentPPO(NCPPolicy, loop_envs(), device="cpu", policy_kwargs=dict(wiring=AutoNCP(units=32)), **settings)
    model.learn(n_steps * N_ENVS)
    with tempfile.TemporaryDirectory() as folder:
        files = itertools.count()

        def collect(callback: BaseCallback) -> None:
            callback.init_callback(model)
            assert model.env is not None
            model.collect_rollouts(model.env, callback, model.rollout_buffer, n_steps)
            callback.on_training_end()  # Waits for the file.

        contenders: dict[str, Run] = {
            "not recorded": lambda: collect(CallbackList([])),
            "every step recorded": lambda: collect(NeuronRecorder(Path(folder) / str(next(files)), every=1)),
        }
        name = f"rollout, {LOOP_ENV}, {N_ENVS} envs, NCPPolicy-32"
        return [measure(name, "us/step", 1e6 / n_steps, contenders, timing)]


def loop_envs() -> Any:
    """Environments of a training loop."""
    return make_vec_env(LOOP_ENV, n_envs=N_ENVS, seed=0)


def memory(timing: Timing) -> list[Group]:
    """Peak memory that forward and backward add, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    groups = []
    for shape in SHAPES:
        medians = {}
        for name in ("ncp_rl.LTC", "torch.nn.LSTM", *(["ncps.torch.LTC"] if HAS_NCPS else [])):
            with context.Pool(1) as pool:
                medians[name] = pool.apply(peak_memory, (name, shape))
        text = "/".join(map(str, shape))
        groups.append(Group(f"U/S/N/T = {text}, peak memory", "MiB", medians))
    return groups


def peak_memory(name: str, shape: tuple[int, int, int, int]) -> float:
    """MiB that a forward and backward pass add at their peak."""
    units, n_inputs, n_sequences, n_steps = shape
    torch.set_num_threads(1)
    module = layers(units, n_inputs)[name]
    # Compilers and libraries take memory of their own with the first, smallest call.
    forward_backward(module, torch.randn(1, n_sequences, n_inputs))()
    run = forward_backward(module, torch.randn(n_steps, n_sequences, n_inputs))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from here.
    run()
    return (resident("VmHWM") - before) / 2**20


def cars(timing: Timing) -> list[Group]:
    """Lane keeping: 64 cars in one simulation against 64 environments, and pictures of the camera."""
    from ncp_envs.lane_keeping import camera
    from ncp_envs.lane_keeping.camera import PictureDisturbances
    from ncp_envs.lane_keeping.sb3 import LaneKeepingVecEnv
    from ncp_envs.lane_keeping.simulation import Simulation

    n_cars, rng = 64, np.random.default_rng(0)
    envs: dict[str, VecEnv] = {
        "DummyVecEnv": DummyVecEnv([lambda: gym.make("ncp/LaneKeeping-v0") for _ in range(n_cars)]),
        "LaneKeepingVecEnv": LaneKeepingVecEnv(n_cars),
    }
    groups = []
    random = rng.uniform(-1, 1, (n_cars, 1)).astype(np.float32)
    for name, steer in (("driven by the baseline", None), ("random steering, 1.3 crashes a step", random)):
        contenders = {env_name: steps(env, steer) for env_name, env in envs.items()}
        groups.append(measure(f"{n_cars} cars, {name}", "steps/s", -n_cars * N_CAR_STEPS, contenders, timing))
    simulation = Simulation(1)
    simulation.start(0, rng)
    plain, disturbed = (
        PictureDisturbances(),
        PictureDisturbances(light=0.5, shadow=0.5, noise=0.5, missing_markings=0.5),
    )
    pictures: dict[str, Run] = {
        "plain": lambda: camera.look(simulation, plain),
        "with every disturbance": lambda: camera.look(simulation, disturbed),
    }
    return [*groups, measure("camera, 48 x 160", "frames/s", -1, pictures, timing)]


def steps(env: VecEnv, actions: Any | None) -> Run:
    """Steps of all cars, from where the run before left them: by the baseline, or with actions that change places."""
    from ncp_envs.lane_keeping.baseline import Baseline

    env.seed(0)
    seen: Any = env.reset()
    controller = Baseline(env.num_envs)
    taken: list[Any] = []
    starts = np.ones(env.num_envs, np.bool_)
    for k in range(N_CAR_STEPS):
        taken.append(controller.act(seen, starts) if actions is None else np.roll(actions, k, axis=0))
        seen, _, starts, _ = env.step(taken[-1])

    def run() -> None:
        # The same starts and actions each time, so that the controller's own time is not counted.
        env.seed(0)
        env.reset()
        for action in taken:
            env.step(action)

    return run


def deployed(timing: Timing) -> list[Group]:
    """A step of a whole controller, observation to action: exported, and by `predict`; its size and cost on a chip."""
    from ncp_rl.export import to_c, to_onnx

    groups = []
    for name, wiring in CIRCUITS.items():
        model = RecurrentPPO(NCPPolicy, LOOP_ENV, seed=0, device="cpu", policy_kwargs=dict(wiring=wiring))
        assert isinstance(model.policy, NCPPolicy)
        built = model.policy.wiring
        n_synapses = len(built.synapses.source) + len(built.sensory_synapses.source)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            to_c(model, folder)
            to_onnx(model, folder / "controller.onnx")
            title = f"{name}, {n_synapses} synapses"
            contenders = exported_steps(folder, model)
            groups.append(measure(f"one step of a controller, {title}", "us", 1e6, contenders, timing))
            groups += on_chip(folder, title)
    return groups


def exported_steps(folder: Path, model: RecurrentPPO) -> dict[str, Run]:
    """A step by each way in which a controller runs."""
    from ncp_rl.export import Controller

    observation = np.array([0.6, -0.8], np.float32)
    library = folder / "controller.so"
    compiler = ("cc", "-std=c99", "-O2", "-shared", "-fPIC", str(folder / "controller.c"), "-o", str(library))
    subprocess.run(compiler, check=True)
    loaded = ctypes.CDLL(str(library))
    # Room enough for the struct, whose size is the header's to know.
    state, action = (ctypes.c_float * 1024)(), (ctypes.c_float * 8)()
    loaded.controller_reset(state)
    numbers = (ctypes.c_float * len(observation))(*observation)
    numpy_alone = Controller.load(folder / "controller.json")
    by_onnx = Controller.load(folder / "controller.onnx")
    _, carried = model.predict(observation, deterministic=True)
    return {
        "C99, called from Python": functools.partial(
            loaded.controller_step, state, numbers, ctypes.c_float(0.05), action
        ),
        "NumPy": functools.partial(numpy_alone.step, observation, 0.05),
        "ONNX Runtime": functools.partial(by_onnx.step, observation, 0.05),
        "PyTorch, model.predict": functools.partial(model.predict, observation, carried, deterministic=True),
    }


def on_chip(folder: Path, title: str) -> list[Group]:
    """Instructions and bytes on a Cortex-M4F; none where tools are missing."""
    from ncp_rl.export.toolchain import build_cortex_m4, missing_cross_tools

    missing = missing_cross_tools()
    if missing:
        print(f"left out on a chip: {missing}", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory() as scratch:
        program, size = build_cortex_m4(folder, Path(scratch))
        begin, seen = np.zeros(50), np.random.default_rng(0).normal(size=(50, 2))
        _, printed = program.run(begin, np.full(50, 0.05), seen)
    instructions = float(printed.split()[1])
    return [
        Group(f"Cortex-M4F, {title}", "bytes", {"flash": size.flash, "RAM, stack included": size.ram}),
        Group(f"Cortex-M4F, a step, {title}", "instr.", {"QEMU, -icount shift=0": instructions}),
    ]


#: By part of the table.
TIMED: dict[str, Callable[[Timing], list[Group]]] = {
    "scan": scan,
    "step": step,
    "loop": loop,
    "rllib": rllib,
    "recording": recording,
    "memory": memory,
    "cars": cars,
    "deployed": deployed,
}
