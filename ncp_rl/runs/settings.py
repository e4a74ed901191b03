"""Settings in rl-zoo's form: what each entry of its yml files stands for; what cannot be read is refused by name.

Nothing of a file is executed: rl-zoo evaluates text such as `"dict(norm_obs=False)"` as Python, here it is read as
literals. But an entry may name a class by its dotted path, such as `gymnasium.wrappers.FlattenObservation`, and then
its module is imported and the class is called, as in rl-zoo. Take files that name classes only from those whose code
you would run.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

#: Entries that are not arguments of the algorithm.
ZOO_ENTRIES = frozenset(
    {
        "n_envs",
        "n_timesteps",
        "normalize",
        "policy",
        "policy_kwargs",
        "env_kwargs",
        "monitor_kwargs",
        "env_wrapper",
        "vec_env_wrapper",
        "frame_stack",
        "callback",
    }
)
#: Arguments that may follow a schedule.
SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf")
#: Arguments of policies that are classes; text names them.
_CLASSES = ("activation_fn", "optimizer_class", "features_extractor_class")

# Entries that hold arguments, and may be text in rl-zoo's files.
_MAPPINGS = ("normalize", "policy_kwargs", "env_kwargs", "monitor_kwargs")
# Arguments of every algorithm that are given elsewhere.
_ELSEWHERE = {
    "env": "the environment is RunConfig's, --env of ncp-rl train",
    "seed": "the seed is RunConfig's, --seed of ncp-rl train",
    "device": "the device is an argument of `train`, --device of ncp-rl train",
    "tensorboard_log": "training curves go to the run folder",
    "disturb": "ncp-rl train reads it; elsewhere name the wrapper, env_wrapper: {ncp_envs.RandomDisturbances: ...}",
}
# Names that rl-zoo's text knows without a module.
_SHORT = {
    "nn": "torch.nn",
    "th": "torch",
    "RMSpropTFLike": "stable_baselines3.common.sb2_compat.rmsprop_tf_like.RMSpropTFLike",
}
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_SCHEDULE = re.compile(r"lin_(?P<start>(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)")


class Named(NamedTuple):
    """What an entry names by its dotted path, and the arguments to call it with."""

    path: str
    call: Any
    arguments: dict[str, Any]


def of_environment(entries: Mapping[Any, Any], env_id: str) -> Any:
    """The part of a file for an environment, as rl-zoo finds it: under its id, `atari` or `default`; or {}.

    Args:
        entries: Hyperparameters by environment.
        env_id: Gymnasium id; `module:id` is found under its id alone too.
    """
    plain = env_id.rpartition(":")[2]
    spec = gym.registry.get(plain)
    is_atari = spec is not None and "AtariEnv" in str(spec.entry_point)
    for name in (env_id, plain, *(["atari"] if is_atari else []), "default"):
        if name in entries:
            return entries[name] or {}
    return {}


def plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """Entries with text read as what it stands for: mappings, numbers. What is no text stays as it is.

    Raises:
        ValueError: An entry cannot be read; the message names it.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"Hyperparameters must be a mapping, got {found!r}.")
    read = {name: _numbers(_plain(name, value)) for name, value in found.items()}
    for name in ("n_envs", "frame_stack", "n_timesteps"):
        number = read.get(name)
        counts = isinstance(number, (int, float)) and not isinstance(number, bool) and number >= 1 and number % 1 == 0
        if number is not None and not counts:
            raise ValueError(f"{name} must be a whole number from 1 on, got {number!r}.")
    return read


def _plain(name: str, value: Any) -> Any:
    if name in _MAPPINGS:
        value = literal(name, value) if isinstance(value, str) else value
        if value is None or isinstance(value, Mapping) or (name == "normalize" and isinstance(value, bool)):
            return value
        allowed = "true, false or a mapping of arguments" if name == "normalize" else "a mapping of arguments"
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")
    return value


def _numbers(value: Any) -> Any:
    """PyYAML takes 1e-5 for text, since YAML 1.1 asks for a point in numbers."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if isinstance(value, Mapping):
        return {name: _numbers(part) for name, part in value.items()}
    return [_numbers(part) for part in value] if isinstance(value, list) else value


def literal(name: str, text: str) -> Any:
    """The value of rl-zoo's Python text: literals and `dict(...)`; names of classes, such as `nn.ReLU`, stay text.

    Raises:
        ValueError: The text is anything else; it is named by `name`.
    """
    try:
        return _literal(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"{name} is text that cannot be read: {text!r}. It must be a dict(...) of literals, which is not executed, "
            "or a mapping without quotes."
        ) from error


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {_given(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(_given(key)) for key in node.keys]
        return dict(zip(keys, map(_literal, node.values), strict=True))
    if isinstance(node, (ast.List, ast.Tuple)):  # A list in either case, as config.json keeps it.
        return [_literal(part) for part in node.elts]
    if isinstance(node, ast.Attribute) or (isinstance(node, ast.Name) and node.id in _SHORT):
        return ast.unparse(node)
    return ast.literal_eval(node)


def _given(part: Any) -> Any:
    if part is None:
        raise ValueError("** is not a literal.")
    return part


def import_path(name: str, path: str) -> Any:
    """What a dotted path names: its module is imported.

    Raises:
        ValueError: There is no such thing; the entry is named by `name`.
    """
    head, dot, rest = path.partition(".")
    module, _, attribute = (_SHORT.get(head, head) + dot + rest).rpartition(".")
    if not module:
        raise ValueError(f"{name} must be a dotted path such as package.module.Name, got {path!r}.")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: {path!r} cannot be imported: {error}") from error


def named(name: str, entry: Any) -> Iterator[Named]:
    """What an entry such as `env_wrapper` or `callback` names, in order.

    Args:
        name: Name of the entry.
        entry: A dotted path, a mapping of one path to arguments, or a list of these; None for nothing.

    Raises:
        ValueError: The entry has another form, or names what cannot be imported or called so.
    """
    for item in entry if isinstance(entry, list) else [] if entry is None else [entry]:
        if isinstance(item, Mapping) and len(item) != 1:
            raise ValueError(
                f"{name} must map one dotted path to its arguments, got {dict(item)}; make each path an item of a list "
                "and indent its arguments below it."
            )
        path, given = next(iter(item.items())) if isinstance(item, Mapping) else (item, None)
        if not isinstance(path, str) or not (given is None or isinstance(given, Mapping)):
            raise ValueError(f"{name} must name a dotted path, or map it to arguments by name, got {item!r}.")
        call, arguments = import_path(name, path), dict(given or {})
        if not callable(call):
            raise ValueError(f"{name}: {path!r} must be a class or function, got {call!r}.")
        check_arguments(path, call, arguments)
        yield Named(path, call, arguments)


def wrapper(name: str, entry: Any, *, training: bool = True) -> Callable[[Any], Any] | None:
    """What puts on the wrappers of an entry, the first one innermost; None where there are none.

    Args:
        name: Name of the entry.
        entry: See `named`.
        training: Whether to put on wrappers whose class says `training_only = True`.

    Raises:
        ValueError: See `named`.
    """
    wrappers = [part for part in named(name, entry) if training or not getattr(part.call, "training_only", False)]
    if not wrappers:
        return None

    def wrap(env: Any) -> Any:
        for part in wrappers:
            env = part.call(env, **part.arguments)
        return env

    return wrap


def callbacks(entry: Any) -> list[BaseCallback]:
    """The callbacks of an entry.

    Raises:
        ValueError: See `named`; or what is named is no callback of Stable-Baselines3.
    """
    made = []
    for part in named("callback", entry):
        callback = part.call(**part.arguments)
        if not isinstance(callback, BaseCallback):
            raise ValueError(f"callback: {part.path!r} must be a BaseCallback of Stable-Baselines3, got {callback!r}.")
        made.append(callback)
    return made


def algorithm_arguments(algorithm: type, found: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an algorithm: all entries that are not rl-zoo's own, schedules made of their text.

    Raises:
        ValueError: The algorithm has no such argument, or text stands where a number or a truth value belongs.
    """
    arguments = {name: value for name, value in found.items() if name not in ZOO_ENTRIES}
    for name in arguments:
        if name in _ELSEWHERE:
            raise ValueError(f"{name} cannot be set here: {_ELSEWHERE[name]}.")
    check_arguments(algorithm.__name__, algorithm, arguments, hidden={*_ELSEWHERE, *ZOO_ENTRIES})
    for name, value in arguments.items():
        if name in SCHEDULED and isinstance(value, str):
            arguments[name] = _schedule(name, value)
        elif isinstance(value, (str, list, tuple, Mapping)):
            raise ValueError(f"{name} must be a number, got {value!r}.")
    return arguments


def policy_arguments(policy: type, found: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments of a policy, with the classes that text names.

    Raises:
        ValueError: Text stands where a truth value belongs, or names no class.
    """
    arguments = dict(found or {})
    for name in _CLASSES:
        if isinstance(arguments.get(name), str):
            arguments[name] = import_path(name, arguments[name])
    # Unknown names are left to the policy, which says what stands for them.
    check_arguments(policy.__name__, policy, arguments, names=False)
    return arguments


def check_arguments(
    what: str,
    call: Callable[..., Any],
    arguments: Mapping[str, Any],
    *,
    names: bool = True,
    hidden: set[str] | frozenset[str] = frozenset(),
) -> None:
    """Refuse arguments that `call` does not take, and text where it takes true or false: text counts as true in Python.

    Args:
        what: Name of `call`, for the message.
        call: A class or function.
        arguments: Values by name.
        names: Whether to look at names too.
        hidden: Arguments that the message does not offer.

    Raises:
        ValueError: An argument is refused.
    """
    parameters = _parameters(what, call)
    unknown = unknown_arguments(what, call, arguments) if names else []
    for name, value in arguments.items():
        if name in unknown:
            taken = [known for known in parameters if known not in hidden and not known.startswith("_")]
            raise ValueError(f"{what} takes no argument {name!r}; it takes {', '.join(taken)}.")
        if name not in parameters:
            continue
        takes_truth = isinstance(parameters[name].default, bool) or parameters[name].annotation in (bool, "bool")
        if takes_truth and isinstance(value, str):
            raise ValueError(f"{name} of {what} must be true or false, got the text {value!r}; leave out the quotes.")


def unknown_arguments(what: str, call: Callable[..., Any], names: Iterable[str]) -> list[str]:
    """Return the names of arguments that `call`, for the message `what`, does not take.

    Raises:
        ValueError: `call` does not say what it takes.
    """
    parameters = _parameters(what, call)
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return [] if any_name else [name for name in names if name not in parameters]


def _parameters(what: str, call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(call).parameters
    except ValueError as error:
        raise ValueError(f"{what} does not say which arguments it takes: {error}") from error


def _schedule(name: str, text: str) -> LinearSchedule:
    """rl-zoo's `lin_3e-4`: linearly from there to 0."""
    parts = _SCHEDULE.fullmatch(text)
    if parts is None:
        raise ValueError(f'{name} must be a number or "lin_<number>", got {text!r}.')
    return LinearSchedule(float(parts["start"]), 0.0, 1.0)
