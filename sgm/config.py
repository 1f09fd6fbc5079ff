"""Configs: reading a YAML with overrides, and building the objects that it names."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sgm.errors import UserError, printable, reason_of, shown
from sgm.paths import exists, is_file, user_path
from sgm.targets import TARGETS

_LARGEST = 256 << 10  # bytes of a YAML, and characters and values of a config
_REFERENCE = re.compile(r"\$\{\s*(\.*)([\w-]+(?:\.[\w-]+|\[\w+\])*)\s*\}")


class ConfigError(UserError):
    """A config that cannot be read, or that names an unknown target."""


def load_config(path: str | Path, overrides: Sequence[str] = (), more: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML, merge `a.b=value` overrides into it, put values in place of references, and check every `target`.

    A YAML may say `base: OTHER.yaml`, a file beside it, into which it is merged. A reference is `${a.b}`, or `${.b}`
    for a key beside its own; omegaconf's resolvers, such as `${oc.env:HOME}`, are refused. more: targets that it
    may name beside those of `sgm.targets`.

    Raises ConfigError with the file's name when it is missing, no regular file, larger than 256 KiB, not YAML, without
    the key `model`, or names an unknown target; and for an override that cannot be read.
    """
    path = user_path(path)
    try:
        changes = OmegaConf.from_dotlist(list(overrides))
        _check_references(changes)
    except Exception as error:  # PyYAML's errors share no base with omegaconf's
        raise ConfigError(f"{' '.join(overrides)} cannot be read as key.subkey=value: {_one_line(error)}") from error
    try:
        config = _yaml(path)
        if isinstance(config, DictConfig) and "base" in config:
            config = OmegaConf.merge(_yaml(path.with_name(str(config.pop("base")))), config)
        if not isinstance(config, DictConfig) or "model" not in config:
            raise ConfigError(f"{path} is not a config: a config is a mapping with the key 'model'.")
        try:
            config = OmegaConf.merge(config, changes)
        except Exception as error:
            raise ConfigError(f"{' '.join(overrides)} does not fit {path}: {_one_line(error)}") from error
        plain = _References(OmegaConf.to_container(config, resolve=False)).replaced()
    except UserError:
        raise
    except RecursionError:
        raise ConfigError(f"{path} cannot be read as a config: its values or references lie too deep.") from None
    except Exception as error:
        if type(error).__module__.startswith("yaml."):
            raise ConfigError(f"{path} is not valid YAML: {reason_of(error)}.") from error
        reason = _one_line(error) if isinstance(error, OmegaConfBaseException) else reason_of(error)
        raise ConfigError(f"{path} cannot be read as a config: {reason}") from error
    for location, target in _targets(plain):
        if target not in TARGETS and target not in more:
            raise ConfigError(f"{path}: {_unknown(target, location, [*more, *TARGETS])}")
    return {str(key): value for key, value in plain.items()}


def instantiate_from_config(config: Mapping[str, Any], **extra: Any) -> Any:
    """Build the object that `config` names: its `target`, called with its `params` and `extra` on top.

    Raises ConfigError for an unknown target and for parameters with which the target cannot be built.
    """
    if not isinstance(config, Mapping | DictConfig):
        raise ConfigError(f"A config is a mapping with the keys 'target' and 'params'; got {shown(config)}.")
    if "target" not in config:
        raise ConfigError(f"A config needs the key 'target'; got the keys {', '.join(map(str, config)) or '(none)'}.")
    target = str(config["target"])
    if target not in TARGETS:
        raise ConfigError(_unknown(target, "target"))
    module, name = TARGETS[target].rsplit(".", 1)
    params = config.get("params") or {}
    if OmegaConf.is_config(params):
        params = OmegaConf.to_container(params, resolve=True)
    if not isinstance(params, Mapping):
        raise ConfigError(f"{target}: params must be a mapping; got {shown(params)}.")
    cls = getattr(import_module(module), name)
    if cls.__module__.startswith("torch."):
        return cls()
    with config_errors(target):
        return cls(**{**params, **extra})


@contextmanager
def config_errors(name: object) -> Iterator[None]:
    """Raise a ConfigError that begins with `name` for whatever the values of a config make fail inside."""
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise ConfigError(f"{name}: the key {error} is missing.") from error
    except Exception as error:
        raise ConfigError(f"{name}: {_one_line(error).replace('__init__() ', '')}") from error


def _yaml(path: Path) -> DictConfig | ListConfig:
    """The content of a YAML file. omegaconf itself bounds what its aliases expand to."""
    if not exists(path):
        raise ConfigError(f"There is no config at {path}.")
    if not is_file(path):
        raise ConfigError(f"{path} cannot be read as a config: it is a folder or a device, no file.")
    with path.open("rb") as file:
        text = file.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise ConfigError(f"{path} cannot be read as a config: it has more than {_LARGEST >> 10} KiB; known have 10.")
    config = OmegaConf.load(io.StringIO(text.decode("utf-8-sig")))
    _check_references(config)
    return config


def _check_references(config: DictConfig | ListConfig) -> None:
    """Raise ValueError where a value is not plain. Before any merging, for which omegaconf may resolve."""
    values = [OmegaConf.to_container(config, resolve=False)]
    while values:
        value = values.pop()
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if isinstance(value, str) and "${" in _REFERENCE.sub("", value):
            raise ValueError(
                f"{shown(value)} is more than a reference to another value, such as ${{model.params.x}}: resolvers, "
                "which could read the environment, are not run."
            )


class _References:
    """A tree of dicts and lists whose references are replaced by what they name.

    Raises ValueError for one that names nothing, and where the result would be large: omegaconf does not bound it.
    """

    def __init__(self, tree: Any) -> None:
        self.tree, self.left = tree, _LARGEST

    def replaced(self) -> dict[str, Any]:
        return self._replaced(self.tree, ())

    def _replaced(self, node: Any, place: tuple[Any, ...]) -> Any:
        """A node, found at `place`, without references."""
        self._spend(len(node) if isinstance(node, str) else 1)
        if isinstance(node, dict):
            return {key: self._replaced(value, (*place, key)) for key, value in node.items()}
        if isinstance(node, list):
            return [self._replaced(value, (*place, i)) for i, value in enumerate(node)]
        if not isinstance(node, str):
            return node
        if whole := _REFERENCE.fullmatch(node):
            return self._replaced(*self._named(whole, place))
        return _REFERENCE.sub(lambda match: str(self._replaced(*self._named(match, place))), node)

    def _named(self, reference: re.Match[str], place: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """The node that a reference at `place` names, and its own place."""
        self._spend(1)
        dots, keys = reference.groups()
        node, found = self.tree, ()
        for key in (*place[: len(place) - len(dots) if dots else 0], *re.findall(r"[^.\[\]]+", keys)):
            if isinstance(node, str) and (inner := _REFERENCE.fullmatch(node)):
                node, found = self._named(inner, found)
            known = dict(enumerate(node)) if isinstance(node, list) else node if isinstance(node, dict) else {}
            key = int(key) if isinstance(node, list) and str(key).isdecimal() else key
            if key not in known:
                raise ValueError(f"{reference[0]} at {'.'.join(map(str, place))} names no value.")
            node, found = known[key], (*found, key)
        return node, found

    def _spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError(f"Its references lead in a circle, or make it larger than {_LARGEST >> 10} KiB.")


def _targets(node: Any, location: str = "") -> Iterator[tuple[str, str]]:
    """Every target below a node, with its dotted key."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        here = f"{location}.{key}" if location else str(key)
        if key == "target":
            yield here, str(value)
        else:
            yield from _targets(value, here)


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()), 400) or type(error).__name__


def _unknown(target: str, location: str, targets: Iterable[str] = TARGETS) -> str:
    name = target.rsplit(".", 1)[-1]
    by_name = {known.rsplit(".", 1)[-1]: known for known in targets}
    near = difflib.get_close_matches(name, by_name, n=3, cutoff=0.5)
    hint = f"Near it: {', '.join(by_name[n] for n in near)}." if near else f"Known: {', '.join(sorted(by_name))}."
    return f"{location} is {shown(target)}, which is not a known target. {hint}"
