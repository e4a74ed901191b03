"""Numbers come back from messages bit for bit, whatever they are."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import numpy.typing as npt
import pytest

from ncp_rl.recording import RecordingError
from ncp_rl.recording.encode import MESSAGE_HEADER, RowEncoder, message_text
from ncp_rl.recording.layout import Field, Layout, Observed, Topic

FLOAT32 = Topic("/values", (Field("outer.a", size=3), Field("outer.b"), Field("c", "float64", 2)))


def layout(dtype: str = "float64", *, discrete: bool = False) -> Layout:
    observed = (Observed(None, (2,), dtype, ("x", "y")),)
    return Layout(2, observed, 1, 2, discrete, n_sensory=40, n_motor=2, n_command=0, n_inter=7)


def encoded(values: npt.NDArray[np.float64], of: Layout) -> dict[str, npt.NDArray[np.float64]]:
    """Encode rows, read them back; (R, ...) by field."""
    messages = RowEncoder(of, (2, 3, 4)).encode(values, np.arange(len(values)) * 10**9, sequence=2**32 - 2)
    assert len(messages) == 3 * len(values)
    found: dict[str, list[list[float]]] = {}
    for k in range(len(messages)):
        start, stop = messages.offsets[k], messages.offsets[k + 1]
        opcode, length, channel, sequence, log_time, publish_time = MESSAGE_HEADER.unpack_from(messages.data, start)
        assert (opcode, length, channel) == (5, stop - start - 9, 2 + k % 3)
        assert (sequence, log_time, publish_time) == ((2**32 - 2 + k) % 2**32, k // 3 * 10**9, k // 3 * 10**9)
        topic = of.topics[k % 3]
        text = bytes(messages.data[start + MESSAGE_HEADER.size : stop])
        if k < 30:
            jsonschema.validate(json.loads(text), topic.schema())
        numbers = topic.parse(text)
        for name, at in topic.slices.items():
            found.setdefault(f"{topic.name}.{name}", []).append(numbers[at])
    return {name: np.array(rows) for name, rows in found.items()}


def rows(n: int, of: Layout) -> npt.NDArray[np.float64]:
    values = np.zeros((n, of.width))
    values[:, of.columns["env"]] = np.arange(n)[:, None] % 2
    values[:, of.columns["step"]] = np.arange(n)[:, None] * 10**6
    values[:, of.columns["truncated"]] = np.arange(n)[:, None] % 2
    return values


def bits(values: Any, dtype: type) -> list[int]:
    found: list[int] = (
        np.asarray(values).astype(dtype).view(np.uint32 if dtype is np.float32 else np.uint64).ravel().tolist()
    )
    return found


def special(dtype: type) -> npt.NDArray[Any]:
    info = np.finfo(dtype)
    values = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        np.inf,
        -np.inf,
        np.nan,
        -np.nan,
        info.max,
        -info.max,
        info.tiny,
        info.smallest_subnormal,
    ]
    values += [0.1, 1 / 3, 9.9999995e-6, 1e-5, 99999.9995, 999999999.5, 1e16, 1e17, 16777217.0]
    powers = [float(f"1e{k}") for k in range(-320, 309)] + [2.0**k for k in range(-1070, 1023)]
    with np.errstate(over="ignore", under="ignore"):
        found: npt.NDArray[Any] = np.array(values + powers).astype(dtype)
        near = np.concatenate([found, np.nextafter(found, dtype(0)), np.nextafter(found, dtype(np.inf))])
    # NaN with a payload, as a processor may hand it on.
    payload = np.array(
        [0x7FC01234 if dtype is np.float32 else 0x7FF8000000001234], np.uint32 if dtype is np.float32 else np.uint64
    )
    return np.concatenate([near, payload.view(dtype)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_number_comes_back_bit_for_bit(dtype: type) -> None:
    rng = np.random.default_rng(0)
    if dtype is np.float32:
        anything = rng.integers(0, 2**32, 40_000, np.uint64).astype(np.uint32).view(np.float32)
        # A signalling NaN becomes quiet in any conversion; arithmetic gives none.
        anything = anything[~np.isnan(anything)]
        name, field, width = "sensory", "/neurons.sensory", 40
    else:
        anything = rng.integers(0, 2**64, 4_000, np.uint64).view(np.float64)
        anything = anything[~np.isnan(anything)]
        name, field, width = "observation", "/transition.observation", 2
    ordinary: npt.NDArray[Any] = rng.normal(size=2000).astype(dtype)
    numbers = np.concatenate([special(dtype), anything, ordinary, ordinary.round(2)])
    numbers = numbers[: len(numbers) // width * width]
    of = layout()
    values = rows(len(numbers) // width, of)
    values[:, of.columns[name]] = numbers.reshape(-1, width)
    found = encoded(values, of)
    assert bits(found[field], dtype) == bits(numbers, dtype)
    assert (found["/policy.step"][:, 0] == values[:, of.columns["step"]][:, 0]).all()
    assert (found["/transition.truncated"][:, 0] == np.arange(len(values)) % 2).all()


def test_the_kernel_writes_what_plain_python_writes() -> None:
    of, rng = layout("float32"), np.random.default_rng(1)
    values = rows(50, of)
    sensory = rng.normal(size=(50, 40)) * 10.0 ** rng.integers(-6, 9, (50, 40))
    values[:, of.columns["sensory"]] = sensory.astype(np.float32)
    encoder = RowEncoder(of, (2, 3, 4))
    messages = encoder.encode(values, np.arange(50), 0)
    for k in range(50):
        for i, record in enumerate(encoder.encode_row(values[k], k, 3 * k)):
            own = bytes(messages.data[messages.offsets[3 * k + i] : messages.offsets[3 * k + i + 1]])
            topic = of.topics[i]
            # The ninth digit may be rounded otherwise; the float32 is the same.
            found, expected = (topic.parse(r[MESSAGE_HEADER.size :]) for r in (own, record))
            assert bits(found, np.float32) == bits(expected, np.float32)


def test_discrete_actions_have_no_deviation() -> None:
    of = layout(discrete=True)
    assert "action_std" not in of.columns
    encoded(rows(2, of), of)


def test_numbers_in_inner_objects() -> None:
    numbers = [1.5, float("nan"), -0.0, float("-inf"), 1 / 3, 2.0]
    text = message_text(FLOAT32, numbers)
    message = json.loads(text)
    assert message["outer"] == {"a": [1.5, float("inf"), -0.0], "b": float("-inf")}
    assert (message["nan_at"], message["nan_bits"]) == ([1], ["7fc00000"])
    assert np.array_equal(FLOAT32.parse(text), numbers, equal_nan=True)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"outer":{"a":[1,2,3],"b":1}}',
        b'{"outer":{"a":[1,2],"b":1},"c":[1,2]}',
        b'{"outer":{"a":[1,2,"3"],"b":1},"c":[1,2]}',
        b'{"outer":{"a":[1,2,[3]],"b":1},"c":[1,2]}',
        b'{"outer":{"a":[1,2,NaN],"b":1},"c":[1,2]}',
        b'{"outer":[1],"c":[1,2]}',
        b'{"outer":{"a":[1,2,3],"b":true},"c":[1,2]}',
        b'{"outer":{"a":[1,2,3],"b":1},"c":[1,2],"nan_at":[9],"nan_bits":["7fc00000"]}',
        b'{"outer":{"a":[1,2,3],"b":1},"c":[1,2],"nan_at":[0],"nan_bits":["00000000"]}',
        b'{"outer":{"a":[1,2,3],"b":1},"c":[1,2],"nan_at":[0],"nan_bits":[]}',
        b'{"outer":{"a":[1,2,3],"b":' + b"9" * 5000 + b'},"c":[1,2]}',
        b'{"outer":{"a":[1,2,3],"b":1' + b"0" * 400 + b'},"c":[1,2]}',
    ],
)
def test_messages_of_another_form_are_refused(text: bytes) -> None:
    with pytest.raises(RecordingError):
        FLOAT32.parse(text)
