"""Configs: reading a YAML with overrides, and building the objects that it names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sgm.errors import UserError
from sgm.targets import TARGETS


class ConfigError(UserError):
    """A config that cannot be read, or that names an unknown target."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML, merge `a.b=value` overrides into it, resolve interpolations, and check every `target`.

    A YAML may say `base: OTHER.yaml`, a file beside it, into which it is merged.

    Raises ConfigError with the file's name when it is missing, not YAML, without the key `model`, or names an unknown
    target; and for an override that cannot be read.
    """
    try:
        changes = OmegaConf.from_dotlist(list(overrides))
    except Exception as error:  # PyYAML's errors share no base with omegaconf's
        raise ConfigError(f"{' '.join(overrides)} cannot be read as key.subkey=value: {_one_line(error)}") from error
    try:
        config = OmegaConf.load(path)
        if isinstance(config, DictConfig) and "base" in config:
            base = OmegaConf.load(Path(path).with_name(str(config.pop("base"))))
            config = OmegaConf.merge(base, config)
        if not isinstance(config, DictConfig) or "model" not in config:
            raise ConfigError(f"{path} is not a config: a config is a mapping with the key 'model'.")
        plain = OmegaConf.to_container(OmegaConf.merge(config, changes), resolve=True)
    except FileNotFoundError as error:
        raise ConfigError(f"There is no config at {error.filename or path}.") from None
    except ConfigError:
        raise
    except (OmegaConfBaseException, ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as a config: {_one_line(error)}") from error
    except Exception as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}") from error
    assert isinstance(plain, dict)
    for location, target in _targets(plain):
        if target not in TARGETS:
            raise ConfigError(f"{path}: {_unknown(target, location)}")
    return {str(key): value for key, value in plain.items()}


def instantiate_from_config(config: Mapping[str, Any], **extra: Any) -> Any:
    """Build the object that `config` names: its `target`, called with its `params` and `extra` on top.

    Raises ConfigError for an unknown target and for parameters that the target does not take.
    """
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
        raise ConfigError(f"{target}: params must be a mapping; got {params!r}.")
    cls = getattr(import_module(module), name)
    if cls.__module__.startswith("torch."):
        return cls()
    try:
        return cls(**{**params, **extra})
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise ConfigError(f"{target}: {str(error).replace('__init__() ', '')}") from error


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
    return " ".join(str(error).split())


def _unknown(target: str, location: str) -> str:
    name = target.rsplit(".", 1)[-1]
    by_name = {known.rsplit(".", 1)[-1]: known for known in TARGETS}
    near = difflib.get_close_matches(name, by_name, n=3, cutoff=0.5)
    hint = f"Near it: {', '.join(by_name[n] for n in near)}." if near else f"Known: {', '.join(sorted(by_name))}."
    return f"{location} is '{target}', which is not a known target. {hint}"
