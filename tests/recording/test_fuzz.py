"""Whatever a recording says, with a chain that is computed anew: an answer, or a RecordingError."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncp_rl.audit import audit_sources, explain, write_report
from ncp_rl.recording import Recording, RecordingError, record_rollouts, replay, verify
from ncp_rl.recording.encode import MESSAGE_HEADER, message_record
from tests.random_env import box
from tests.recording.recordings import random_model
from tests.recording.test_verify import careful

#: Texts of JSON that no recording has where they are put.
NASTY = [
    *("0", "1", "-1", "-5", "7", "1e308", "1e39", "1e38", "-1e38", "1e-300", "1e400", "-1e999", "0.5", "1" + "0" * 400),
    *("1048575", "4294967296", "9223372036854775808", "NaN", "Infinity", "-Infinity", "null", "true", "false"),
    *('""', '"foo"', '"evil"', '"M8[s]"', '"O"', '"float64"', '"\\ud800"', '"a\\u0000b"', '"<script>"', '"7fc0000000"'),
    *("[]", "{}", "[0]", "[[]]", '[["a"]]', "[[Infinity,0,0,1]]", "[[0,0,0,1099511627776]]", '{"a":1}', "[1e999]"),
]


class Small(NamedTuple):
    data: bytes
    path: Path

    def __repr__(self) -> str:
        """Without the bytes, which hypothesis would print."""
        return f"Small({self.path})"


@pytest.fixture(scope="module")
def small_cfc(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The same of CfC neurons."""
    folder = tmp_path_factory.mktemp("fuzz_cfc")
    model, venv = random_model(box(2), box(1), policy_kwargs=dict(cell="cfc"))
    path = record_rollouts(model, venv, folder / "small.mcap", n_episodes=4, progress_bar=False)
    return Small(path.read_bytes(), folder / "forged.mcap")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Four episodes of a few steps."""
    folder = tmp_path_factory.mktemp("fuzz")
    model, venv = random_model(box(2), box(1))
    path = record_rollouts(model, venv, folder / "small.mcap", n_episodes=4, progress_bar=False)
    return Small(path.read_bytes(), folder / "forged.mcap")


def answer(path: Path, data: bytes) -> Recording | None:
    """Open, read, replay and explain; the recording where all of these answered."""
    path.write_bytes(data)
    verification = verify(path)
    assert verification.status in ("intact", "damaged") and str(verification)
    try:
        recording = Recording.open(path)
        for episode in recording if recording.circuit.cell == "ltc" else ():
            explanation = explain(recording.circuit, episode)
            assert explanation.sentence(-1) and explanation.residual() >= 0
        json.dumps(replay(recording).to_dict())
        assert str(replay(recording))
    except RecordingError as error:
        assert str(error).encode()
        return None
    return recording


def ask_everything(path: Path) -> None:
    """The audit and its report."""
    out = path.parent / "audit"
    try:
        audit = audit_sources([path], out)
        if audit.subjects[0].recording.circuit.cell == "ltc":
            write_report(audit, out / "report.html")
        json.loads((out / "audit.json").read_text())
    except RecordingError as error:
        assert str(error).encode()
    finally:
        for file in out.glob("*"):
            file.unlink()
        if out.exists():
            out.rmdir()


def places(value: Any) -> list[tuple[Any, ...]]:
    """Paths to all that a JSON value holds."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key, part in inside for rest in places(part))]


def put(value: Any, place: tuple[Any, ...], text: str | None) -> bytes:
    """JSON of the value with a text at a place, or nothing there."""
    marked = copy.deepcopy(value)
    if not place:
        return (text or "").encode()
    at = marked
    for key in place[:-1]:
        at = at[key]
    if text is None:
        del at[place[-1]]
    else:
        at[place[-1]] = "@"
    return json.dumps(marked, separators=(",", ":")).replace('"@"', text or "", 1).encode()


class Forgery(NamedTuple):
    """Edits of one thing: an attachment, a message, a tensor or an entry of the chain."""

    kind: str
    place: Callable[[Any], tuple[Any, ...]]
    text: str | None

    def of(self, data: bytes) -> bytes:
        if self.kind in ("manifest.json", "circuit.json"):
            return careful(data, rechained=True, attachment=self._attachment)
        if self.kind == "tensors":
            return careful(data, rechained=True, attachment=self._tensors)
        if self.kind in ("chunk", "seal"):
            return careful(data, rechained=True, entry=self._entry)
        return careful(data, self._message, rechained=True)

    def _attachment(self, name: str, content: bytes) -> bytes:
        if name != self.kind:
            return content
        value = json.loads(content)
        return put(value, self.place(value), self.text)

    def _tensors(self, name: str, content: bytes) -> bytes:
        if name != "circuit.safetensors":
            return content
        tensors = {key: array.copy() for key, array in safetensors.numpy.load(content).items()}
        key, index = self.place(tensors)
        number = float(self.text.replace("NaN", "nan")) if self.text and _is_number(self.text) else None
        if number is None:
            del tensors[key]
        else:
            with np.errstate(over="ignore"):
                tensors[key].reshape(-1)[index % tensors[key].size] = np.float32(number)
        return safetensors.numpy.save(tensors)

    def _entry(self, name: str, entries: dict[str, str]) -> None:
        if name == self.kind:
            value = json.loads(entries["episodes"])
            entries["episodes"] = put(value, self.place(value), self.text).decode()

    def _message(self, messages: list[bytes]) -> None:
        (index,) = self.place(range(len(messages)))
        record = messages[index]
        _, _, channel, sequence, log_time, _ = MESSAGE_HEADER.unpack_from(record)
        value = json.loads(record[MESSAGE_HEADER.size :])
        paths = places(value)
        place = paths[sequence * 7919 % len(paths)] if self.kind == "message" else _path(self.kind)
        messages[index] = message_record(channel, sequence, log_time, put(value, place, self.text))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _path(kind: str) -> tuple[Any, ...]:
    return tuple(int(key) if key.isdigit() else key for key in kind.split("/")[1:])


def at(*place: Any) -> Callable[[Any], tuple[Any, ...]]:
    return lambda value: place


def step_message(value: range) -> tuple[Any, ...]:
    """A message of /transition, in the middle of the chunk."""
    return (len(value) // 2 // 3 * 3 + 4,)


NAMED = {
    "list of infinity": Forgery("chunk", at(), "[[Infinity,0,0,1]]"),
    "list of 1e400": Forgery("chunk", at(0, 3), "1e400"),
    "list of nothing": Forgery("chunk", at(), "[]"),
    "endless time": Forgery("circuit.json", at("elapsed_time"), "1" + "0" * 400),
    "no time": Forgery("circuit.json", at("elapsed_time"), "1e-320"),
    "unknown type": Forgery("manifest.json", at("layout", "observed", 0, "dtype"), '"foo"'),
    "type of dates": Forgery("manifest.json", at("layout", "observed", 0, "dtype"), '"M8[s]"'),
    "no environments": Forgery("manifest.json", at("layout", "n_envs"), "0"),
    "a million environments": Forgery("manifest.json", at("layout", "n_envs"), "1048575"),
    "kind that is a list": Forgery("manifest.json", at("kind"), "[]"),
    "seed that is a text": Forgery("manifest.json", at("seed"), '"foo"'),
    "no policy": Forgery("manifest.json", at("policy"), None),
    "unknown backend": Forgery("circuit.json", at("backend"), '"evil"'),
    "half a character": Forgery("circuit.json", at("action_names", 0), '"\\ud800"'),
    "half a character in the manifest": Forgery("manifest.json", at("environment", "id"), '"\\udfff"'),
    "giant reversal potential": Forgery("tensors", at("ltc.erev", 3), "1e38"),
    "giant weight": Forgery("tensors", at("ltc.w", 3), "3e38"),
    "giant capacitance": Forgery("tensors", at("ltc.cm", 2), "3e38"),
    "giant readout": Forgery("tensors", at("ltc.motor_map.weight", 0), "3e38"),
    "infinite leak potential": Forgery("tensors", at("ltc.vleak", 0), "Infinity"),
    "unknown neurons": Forgery("manifest.json", at("layout", "cell"), '"gru"'),
    "neurons that are a list": Forgery("manifest.json", at("layout", "cell"), "[]"),
    "neurons of another kind": Forgery("manifest.json", at("layout", "cell"), '"cfc"'),
    "circuit of another kind": Forgery("circuit.json", at("cell"), '"cfc"'),
}
OF_CFC = {
    "unknown mode": Forgery("circuit.json", at("mode"), '"evil"'),
    "mode that is a list": Forgery("circuit.json", at("mode"), "[]"),
    "mode of other weights": Forgery("circuit.json", at("mode"), '"pure"'),
    "mode of equal weights": Forgery("circuit.json", at("mode"), '"no_gate"'),
    "no time": Forgery("circuit.json", at("elapsed_time"), "1e-320"),
    "synapse across layers": Forgery("circuit.json", at("wiring", "sensory_adjacency", 0, 0), "1"),
    "no command neurons": Forgery("circuit.json", at("wiring", "n_command"), "0"),
    "giant weight": Forgery("tensors", at("cfc.layers.0.weight", 3), "3e38"),
    "infinite offset": Forgery("tensors", at("cfc.layers.1.bias", 0), "Infinity"),
    "no kind": Forgery("manifest.json", at("layout", "cell"), None),
}
MESSAGES = {
    "negative time": ("elapsed_time", "-5"),
    "infinite time": ("elapsed_time", "1e999"),
    "time beyond float32": ("elapsed_time", "1e39"),
    "reward beyond float32": ("reward", "1e300"),
    "observation that is infinite": ("observation/0", "1e999"),
}


@pytest.mark.parametrize("name", NAMED)
def test_known_forgeries(name: str, small: Small) -> None:
    if answer(small.path, NAMED[name].of(small.data)) is not None:
        ask_everything(small.path)


@pytest.mark.parametrize("name", OF_CFC)
def test_known_forgeries_of_cfc(name: str, small_cfc: Small) -> None:
    if answer(small_cfc.path, OF_CFC[name].of(small_cfc.data)) is not None:
        ask_everything(small_cfc.path)


@pytest.mark.parametrize("name", MESSAGES)
def test_known_messages(name: str, small: Small) -> None:
    key, text = MESSAGES[name]
    for offset in range(3):
        forgery = Forgery(f"message/{key}", lambda value, offset=offset: (6 + offset,), text)  # type: ignore[misc]
        try:
            data = forgery.of(small.data)
        except (KeyError, IndexError):
            continue
        if answer(small.path, data) is not None:
            ask_everything(small.path)


@pytest.mark.parametrize("bits", ['"7fc0000000"', '"7fc00000"', '"zz"', "5", "null", '"3f800000"', '["7fc00000"]'])
def test_bits_of_nan(bits: str, small: Small) -> None:
    def edit(messages: list[bytes]) -> None:
        _, _, channel, sequence, log_time, _ = MESSAGE_HEADER.unpack_from(messages[5])
        text = messages[5][MESSAGE_HEADER.size : -1] + b',"nan_at":[6],"nan_bits":[' + bits.encode() + b"]}"
        messages[5] = message_record(channel, sequence, log_time, text)

    if answer(small.path, careful(small.data, edit, rechained=True)) is not None:
        ask_everything(small.path)


KINDS = ["manifest.json", "manifest.json", "circuit.json", "tensors", "chunk", "seal", "message", "message"]


@st.composite
def forgeries(draw: st.DrawFn) -> Forgery:
    kind, number = draw(st.sampled_from(KINDS)), draw(st.integers(0, 2**31))

    def place(value: Any) -> tuple[Any, ...]:
        if kind == "tensors":
            return list(value)[number % len(value)], number // len(value)
        if kind == "message":
            return (number % len(value),)
        # Short paths first: those of matrices are many, and all alike.
        found = sorted(places(value), key=len)
        return found[number % min(len(found), 120)]

    return Forgery(kind, place, draw(st.none() | st.sampled_from(NASTY)))


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(forgeries())
def test_any_field_may_hold_anything(small: Small, forgery: Forgery) -> None:
    answer(small.path, forgery.of(small.data))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(forgeries())
def test_any_field_of_cfc_may_hold_anything(small_cfc: Small, forgery: Forgery) -> None:
    answer(small_cfc.path, forgery.of(small_cfc.data))


@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(forgeries())
def test_the_audit_answers_or_says_why_not(small: Small, forgery: Forgery) -> None:
    if answer(small.path, forgery.of(small.data)) is not None:
        ask_everything(small.path)
