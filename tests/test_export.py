"""Controllers leave PyTorch by every route, ONNX by both exporters and torch.export, with the policy's numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from ncps.torch import LTCCell
from ncps.wirings import AutoNCP as NcpsAutoNCP
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from torch import Tensor, nn

from ncp_rl import LTC, AutoNCP, CnnNCPPolicy, FullyConnected, MultiInputNCPPolicy, NCPPolicy, Wiring
from tests.random_env import TIMED, box

#: What PyTorch itself says: that its older ways will go, and that torchvision is missing.
pytestmark = pytest.mark.filterwarnings(
    "ignore:You are using the legacy TorchScript-based ONNX export:DeprecationWarning",
    "ignore:The feature will be removed:DeprecationWarning",
    "ignore:`torch.jit:DeprecationWarning",
    "ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning",
)
ATOL = 2e-6
Make = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


class Controller(nn.Module):
    """Encoder, circuit and motor map, one step: observation and potentials to action means and potentials."""

    def __init__(self, policy: NCPPolicy) -> None:
        super().__init__()
        self.encoder, self.ltc, self.action_net = policy.pi_features_extractor, policy.lstm_actor, policy.action_net

    def forward(self, observation: Tensor, potentials: Tensor) -> tuple[Tensor, Tensor]:
        after, state = self.ltc(self.encoder(observation)[None], potentials)
        return self.action_net(after[0]), state


class Rollout(nn.Module):
    """A circuit alone over a whole sequence, with resets and irregular time."""

    def __init__(self, ltc: LTC) -> None:
        super().__init__()
        self.ltc = ltc

    def forward(self, inputs: Tensor, state: Tensor, starts: Tensor, seconds: Tensor) -> tuple[Tensor, Tensor]:
        potentials, state = self.ltc(inputs, state, starts, seconds)
        return self.ltc.motor_map(potentials), state


class Predict(nn.Module):
    """The whole policy, as SB3's guide wraps it for export."""

    def __init__(self, policy: NCPPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observation: Tensor, h: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = torch.zeros_like(h)
        action, value, _, states = self.policy(observation, RNNStates((h, c), (h, c)), starts, deterministic=True)
        return action, value, states.pi[0]


def new_policy(policy: type[NCPPolicy] = NCPPolicy, space: Any = None, actions: Any = None, **kwargs: Any) -> NCPPolicy:
    torch.manual_seed(0)
    arguments: dict[str, Any] = dict(wiring=AutoNCP(12), elapsed_time=0.05) | kwargs
    made = policy(space or box(3), actions or spaces.Box(-2, 2, (2,), np.float32), lambda _: 1e-3, **arguments)
    made.set_training_mode(False)
    return made


def controller(**kwargs: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Controller(new_policy(**kwargs)).eval(), (torch.randn(1, 3), torch.randn(1, 12))


def rollout(
    wiring: Wiring | None = None, n_steps: int = 5, ode_unfolds: int = 3
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    ltc = LTC(wiring or AutoNCP(12).build(4, 2), ode_unfolds=ode_unfolds)
    starts = torch.zeros(n_steps, 3, dtype=torch.bool)
    starts[1, 1] = True
    operands = torch.randn(n_steps, 3, 4), torch.randn(3, ltc.hidden_size), starts, torch.rand(n_steps, 3)
    return Rollout(ltc).eval(), operands


def whole_policy(**kwargs: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    h = torch.randn(1, 1, 12)
    return Predict(new_policy(**kwargs)).eval(), (torch.randn(1, 3), h, torch.zeros(1))


def outputs_of(module: nn.Module, operands: tuple[Tensor, ...]) -> list[np.ndarray[Any, Any]]:
    with torch.no_grad():
        return [output.numpy() for output in module(*operands)]


def export(module: nn.Module, operands: tuple[Any, ...], path: Path, *, dynamo: bool, **options: Any) -> Path:
    torch.onnx.export(module, operands, str(path), dynamo=dynamo, **options)
    onnx.checker.check_model(str(path), full_check=True)
    assert {node.domain for node in onnx.load(str(path)).graph.node} == {""}
    return path


def run_onnx(path: Path, operands: tuple[Tensor, ...]) -> list[np.ndarray[Any, Any]]:
    return run_session(onnxruntime.InferenceSession(str(path)), operands)


def run_session(session: Any, operands: tuple[Tensor, ...]) -> list[np.ndarray[Any, Any]]:
    names = [given.name for given in session.get_inputs()]
    assert len(names) <= len(operands)
    feed = {name: operand.numpy() for name, operand in zip(names, operands, strict=False)}
    return list(session.run(None, feed))


def assert_close(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=ATOL)


CASES: dict[str, Make] = {
    "controller": controller,
    "dense": lambda: controller(motor_map="dense"),
    "sequence": rollout,
    "fully connected": lambda: rollout(FullyConnected(7).build(4, 2)),
    "no synapses between neurons": lambda: rollout(silent_wiring()),
}
WHOLE_POLICIES: dict[str, dict[str, Any]] = {
    "box": {},
    "discrete": dict(critic="shared", actions=spaces.Discrete(3)),
    "several choices": dict(critic="mlp", actions=spaces.MultiDiscrete([2, 3])),
    "switches": dict(critic="ltc", actions=spaces.MultiBinary(3)),
}


def silent_wiring() -> Wiring:
    return Wiring(np.zeros((6, 6), np.int8), np.ones((4, 6), np.int8), 2, 1)


@pytest.mark.parametrize("name", CASES)
def test_old_onnx_exporter(name: str, tmp_path: Path) -> None:
    module, operands = CASES[name]()
    path = export(module, operands, tmp_path / "a.onnx", dynamo=False)
    assert_close(run_onnx(path, operands), outputs_of(module, operands))


@pytest.mark.parametrize("name", WHOLE_POLICIES)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # Stable-Baselines3 decides by shapes, as it should.
def test_old_onnx_exporter_of_a_whole_policy(name: str, tmp_path: Path) -> None:
    module, operands = whole_policy(**WHOLE_POLICIES[name])
    path = export(module, operands, tmp_path / "a.onnx", dynamo=False)
    assert_close(run_onnx(path, operands), outputs_of(module, operands))


def test_new_onnx_exporter_of_a_whole_policy(tmp_path: Path) -> None:
    """With one substep: this exporter takes a second for every few of them."""
    module, operands = whole_policy(ode_unfolds=1)
    path = export(module, operands, tmp_path / "a.onnx", dynamo=True)
    assert_close(run_onnx(path, operands), outputs_of(module, operands))


def test_torch_export_holds_operators_of_pytorch_alone(tmp_path: Path) -> None:
    module, operands = controller(ode_unfolds=2)
    program = torch.export.export(module, operands, strict=True)
    namespaces = {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"}
    assert namespaces <= {"aten", "<built-in function getitem>"}
    torch.export.save(program, tmp_path / "a.pt2")
    loaded = torch.export.load(tmp_path / "a.pt2").module()
    assert_close(outputs_of(loaded, operands), outputs_of(module, operands))


def test_one_exported_step_goes_on_as_the_policy_does(tmp_path: Path) -> None:
    """200 steps, each from the state that the one before gave, against `predict`."""
    policy = new_policy()
    path = export(Controller(policy).eval(), (torch.zeros(1, 3), torch.zeros(1, 12)), tmp_path / "a.onnx", dynamo=False)
    session = onnxruntime.InferenceSession(str(path))
    potentials, state = torch.zeros(1, 12), None
    for observation in torch.randn(200, 1, 3).clamp(-1, 1):
        action, next_potentials = run_session(session, (observation, potentials))
        potentials = torch.from_numpy(next_potentials)
        expected, state = policy.predict(observation.numpy(), state, deterministic=True)
        np.testing.assert_allclose(np.clip(action, -2, 2), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dynamo", [False, True], ids=["old", "new"])
def test_the_number_of_sequences_may_stay_open(dynamo: bool, tmp_path: Path) -> None:
    module, operands = controller(ode_unfolds=1)
    names: dict[str, Any] = dict(input_names=["observation", "potentials"], output_names=["action", "state"])
    if dynamo:
        names["dynamic_shapes"] = ({0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
        operands = torch.randn(2, 3), torch.randn(2, 12)
    else:
        names["dynamic_axes"] = {name: {0: "batch"} for name in ("observation", "potentials", "action", "state")}
    path = export(module, operands, tmp_path / "a.onnx", dynamo=dynamo, **names)
    for n in (1, 5):
        several = torch.randn(n, 3), torch.randn(n, 12)
        assert_close(run_onnx(path, several), outputs_of(module, several))


def test_dict_observations_with_images_and_elapsed_time(tmp_path: Path) -> None:
    """The encoders and the seconds, through the old exporter, which takes a dict of named inputs."""
    policy = new_policy(MultiInputNCPPolicy, spaces.Dict({**TIMED, "image": spaces.Box(0, 255, (3, 36, 36), np.uint8)}))

    class Driver(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = policy

        def forward(self, x: Tensor, image: Tensor, elapsed_time: Tensor, potentials: Tensor) -> tuple[Tensor, Tensor]:
            observation = {"x": x, "image": image, "elapsed_time": elapsed_time}
            features = self.policy.pi_features_extractor(observation)
            inputs, seconds = features[None, :, :-1], features[None, :, -1]
            after, state = self.policy.lstm_actor(inputs, potentials, None, seconds)
            return self.policy.action_net(after[0]), state

    operands = torch.randn(1, 3), torch.rand(1, 3, 36, 36), torch.tensor([[0.2]]), torch.randn(1, 12)
    module = Driver().eval()
    path = export(module, operands, tmp_path / "a.onnx", dynamo=False)
    assert_close(run_onnx(path, operands), outputs_of(module, operands))


def test_images_alone(tmp_path: Path) -> None:
    policy = new_policy(CnnNCPPolicy, spaces.Box(0, 255, (3, 36, 36), np.uint8))
    module, operands = Controller(policy).eval(), (torch.rand(1, 3, 36, 36), torch.randn(1, 12))
    path = export(module, operands, tmp_path / "a.onnx", dynamo=False)
    assert_close(run_onnx(path, operands), outputs_of(module, operands))


def test_a_circuit_of_ncps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ltc = LTC.from_ncps(LTCCell(NcpsAutoNCP(10, 2), 4)).eval()
    operands = torch.randn(2, 1, 4), torch.randn(1, 10)
    path = export(ltc, operands, tmp_path / "a.onnx", dynamo=False)
    assert_close(run_onnx(path, operands), outputs_of(ltc, operands))


def test_a_trace_follows_its_inputs() -> None:
    """It once kept the numbers that the kernel gave while it was traced, whatever came later."""
    module, operands = rollout()
    traced = torch.jit.trace(module, operands)
    _, others = rollout()
    inputs, state, starts, seconds = others
    changed = inputs + 1, state - 1, ~starts, seconds * 2
    assert_close(outputs_of(traced, changed), outputs_of(module, changed))


def test_scripting_is_refused_with_the_ways_that_work() -> None:
    for module in (LTC(AutoNCP(12).build(4, 2)), *(make()[0] for make in (controller, whole_policy))):
        with pytest.raises(TypeError, match=r"export it by torch\.export\.export or torch\.onnx\.export, or trace it"):
            torch.jit.script(module)


def test_not_a_number_comes_out_where_it_went_in() -> None:
    """What an exported graph sums and what the kernels sum are the same synapses, no others times zero."""
    module, (inputs, state, starts, seconds) = rollout(n_steps=2, ode_unfolds=1)
    inputs[0, 0, 2] = torch.nan
    expected = outputs_of(module, (inputs, state, starts, seconds))
    program = torch.export.export(module, (inputs, state, starts, seconds)).module()
    found = outputs_of(program, (inputs, state, starts, seconds))
    assert np.isnan(expected[1][0]).any() and not np.isnan(expected[1][0]).all()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=ATOL, equal_nan=True)
