"""The schema of training configs: which settings there are, of which kind, in which range, and what they default to."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgm.config import ConfigError, load_config
from sgm.errors import shown
from sgm.fields import Field, is_number
from sgm.paths import user_path

_REQUIRED = object()
_OPTIM, _SCHEDULE = "torch.optim.", "torch.optim.lr_scheduler."
OPTIMIZERS = (
    *(_OPTIM + name for name in ("AdamW", "Adam", "Adadelta", "Adafactor", "Adagrad", "Adamax", "NAdam", "RAdam")),
    *(_OPTIM + name for name in ("RMSprop", "SGD")),
    *("bitsandbytes.optim." + name for name in ("AdamW8bit", "PagedAdamW8bit", "Adam8bit", "AdEMAMix8bit", "Lion8bit")),
)
SCHEDULES = tuple(
    _SCHEDULE + name
    for name in (
        "ConstantLR",
        "CosineAnnealingLR",
        "CosineAnnealingWarmRestarts",
        "CyclicLR",
        "ExponentialLR",
        "LinearLR",
        "MultiStepLR",
        "OneCycleLR",
        "PolynomialLR",
        "StepLR",
    )
)
LORA_TARGETS = ("temporal_attention", "attention", "temporal_convolutions", "convolutions")


@dataclass(frozen=True)
class _Setting:
    """check(name, value): the value, converted, or ConfigError. default: its value unless given; None may be given."""

    check: Callable[[str, Any], Any]
    default: Any = _REQUIRED
    text: bool = False  # what is given on the command line is a text, even if it looks like a number


def _number(low: float, high: float, default: Any = _REQUIRED, kind: type = float) -> _Setting:
    def check(name: str, value: Any) -> Any:
        field = Field(name, kind, "", "", low, high)
        return field.check(field.parse(value) if isinstance(value, str) else value)

    return _Setting(check, default)


def _share() -> _Setting:
    """A number from 0 to 1, or true and false for these."""
    number = _number(0, 1, 0.0)
    return _Setting(lambda name, value: number.check(name, float(value) if isinstance(value, bool) else value), 0.0)


def _whole(low: int, high: int, default: Any = _REQUIRED) -> _Setting:
    return _number(low, high, default, int)


def _text(name: str, value: Any) -> str:
    if not (isinstance(value, str) or is_number(value)) or not str(value).strip():
        raise ConfigError(f"{name} must be a text; got {shown(value)}.")
    return str(value)


def _path(default: Any = None) -> _Setting:
    return _Setting(lambda name, value: user_path(_text(name, value)), default, text=True)


def _fresh(name: str, value: Any) -> int | float:
    """`train.fresh`: a whole number of clips, or a share of one clip, below 1."""
    number = _number(0, 65536).check(name, value)
    if number > 1 and number != int(number):
        raise ConfigError(f"{name} must be a whole number or a share below 1; got {shown(value)}.")
    return number if 0 < number < 1 else int(number)


def _one_of(*choices: Any, default: Any = _REQUIRED) -> _Setting:
    def check(name: str, value: Any) -> Any:
        if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in choices):
            raise ConfigError(f"{name} must be one of {', '.join(map(_yaml, choices))}; got {shown(value)}.")
        return value

    return _Setting(check, default)


def _yaml(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _list(of: Callable[[str, Any], Any], length: int | None, default: Any) -> _Setting:
    def check(name: str, value: Any) -> tuple:
        if not isinstance(value, (list, tuple)) or len(value) != (length or len(value)):
            raise ConfigError(f"{name} must be a list of {length or 'texts'}; got {shown(value)}.")
        return tuple(of(name, item) for item in value)

    return _Setting(check, default)


def _targets(name: str, value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names or not all(target in LORA_TARGETS for target in names):
        raise ConfigError(f"{name} must be one or several of {', '.join(LORA_TARGETS)}; got {shown(value)}.")
    return tuple(dict.fromkeys(names))


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a mapping with target and params; got {shown(value)}.")
    return value


def _one_target(names: Sequence[str], own: Mapping[str, str] = {}) -> Callable[[str, Any], Mapping[str, Any]]:
    """own: parameter -> the setting by which it is given instead."""

    def check(name: str, value: Any) -> Mapping[str, Any]:
        target, params = _mapping(name, value).get("target"), value.get("params") or {}
        if target not in names:
            raise ConfigError(f"{name}.target must be one of {', '.join(names)}; got {shown(target)}.")
        if not isinstance(params, Mapping) or (more := set(value) - {"target", "params"}):
            what = f"the key {min(more)}" if isinstance(params, Mapping) else f"params {shown(params)}"
            raise ConfigError(f"{name} must be a mapping with target and params, itself a mapping; got {what}.")
        for key, setting in own.items():
            if key in params:
                raise ConfigError(f"{name}.params has {key}: set {setting} instead.")
        return {"target": target, "params": dict(params)}

    return check


_SETTINGS: dict[str, _Setting] = {
    "task": _one_of("autoencoder", "video", "lora"),
    "model": _path(_REQUIRED),
    "init": _path(),
    "out": _path(_REQUIRED),
    # The LoRA's.
    "rank": _whole(1, 1024, 16),
    "alpha": _number(1e-6, 1e6, 16.0),
    "dropout": _number(0, 0.99, 0.0),
    "targets": _Setting(_targets, ("temporal_attention",)),
    "trigger": _Setting(_text, None, text=True),
    "data.folder": _path(),
    "data.pictures": _path(),
    "data.clips": _path(),
    "data.masks": _path(),
    "data.composed": _number(0, 1, 0.25),
    "data.recoloured": _number(0, 1, 0.0),
    "data.clips_share": _number(0, 1, 0.125),
    "data.canvas": _list(_whole(8, 16384).check, 2, (384, 640)),
    "data.height": _whole(8, 8192),
    "data.width": _whole(8, 8192),
    "data.frames": _whole(1, 1000),
    "data.motion_bucket": _list(_number(0, 511).check, 2, (0, 255)),
    "data.holdout": _list(_text, None, ()),
    "sample.pictures": _path(),
    "sample.minutes": _number(0, 1e6, 10.0),
    "sample.steps": _whole(1, 1000, None),
    "sample.seed": _whole(0, 2**32 - 2, 23),
    "train.minutes": _number(0.001, 1e6, None),
    "train.steps": _whole(1, 10**9, None),
    "train.time_limit": _number(0.001, 1e6, None),  # minutes of this process
    "train.seed": _whole(0, 2**63 - 1, 0),
    "train.devices": _whole(1, 1024, None),
    "train.strategy": _one_of("ddp", "fsdp", default="ddp"),
    "train.batch": _whole(1, 65536),
    "train.accumulate": _whole(1, 65536, 1),
    "train.lr": _number(1e-12, 10),
    "train.weight_decay": _number(0, 10, 0.01),
    "train.optimizer": _Setting(
        _one_target(OPTIMIZERS, {"lr": "train.lr", "weight_decay": "train.weight_decay"}),
        {"target": OPTIMIZERS[0], "params": {"betas": [0.9, 0.99]}},
    ),
    "train.schedule": _Setting(_one_target(SCHEDULES), None),
    "train.warmup": _whole(1, 10**9, 1),
    "train.decay": _number(1e-6, 1, 0.3),
    "train.ema": _number(0, 1 - 1e-9, 0.0),
    "train.precision": _one_of("32-true", "bf16-mixed", "16-mixed", "bf16-true", default="bf16-mixed"),
    "train.compile": _one_of(True, False, default=False),
    "train.tensorboard": _one_of(True, False, default=True),
    "train.wandb": _Setting(_text, None, text=True),
    # The autoencoder's.
    "train.encoder": _one_of(True, False, default=True),
    "train.kl": _number(0, 1e3, 1e-5),
    "train.moved_share": _number(0, 1, 0.1),
    "train.latent_noise": _number(0, 10, 0.1),
    "train.flicker_weight": _number(0, 1e3, 0.0),
    "train.peak_weight": _number(0, 1e3, 0.0),
    "train.perceptual": _path(),
    "train.perceptual_weight": _number(0, 1e3, 0.1),
    # The video network's.
    "train.fresh": _Setting(_fresh, 1),
    "train.pool": _whole(1, 10**6, 64),
    "train.only": _one_of("temporal", None, default=None),
    "train.checkpointing": _share(),
    "train.camera_dropout": _number(0, 1, 0.0),
    "train.loss_config": _Setting(_mapping, None),
}


_OF_LORA = ("rank", "alpha", "dropout", "targets", "trigger")  # at the top of a config, that they are at hand


def read_training_config(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A training config with all its settings: {"task": ..., "data": {}, "train": {}, "sample": {}}; paths are `Path`s.

    overrides: such as "train.lr=1e-4". Raises ConfigError for settings that are unknown, missing, of another kind or
    out of their range, and as `load_config` does.
    """
    given = _flat(load_config(path, [_as_text(override) for override in overrides], (*OPTIMIZERS, *SCHEDULES)))
    config: dict[str, Any] = {"data": {}, "train": {}, "sample": {}}
    for name, setting in _SETTINGS.items():
        value = given.pop(name, setting.default)
        if value is _REQUIRED:
            raise ConfigError(f"{path}: the setting {name} is missing.")
        section, _, key = name.rpartition(".")
        checked = value if value is None and setting.default is None else setting.check(name, value)
        (config[section or "train"] if section or name in _OF_LORA else config)[key] = checked
    for name in given:
        near = difflib.get_close_matches(name, _SETTINGS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_SETTINGS)}."
        raise ConfigError(f"{name} is no setting of a training config: {hint}")
    _check_together(config)
    return config


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name not in ("data", "train", "sample"):
            flat[name] = value
        elif isinstance(value, Mapping):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            raise ConfigError(f"{name} must be a mapping of settings; got {shown(value)}.")
    return flat


def _as_text(override: str) -> str:
    """An override whose value YAML takes for a text where its setting is one, as in data.pictures=2024."""
    name, equals, value = override.partition("=")
    setting = _SETTINGS.get(name)
    if not equals or setting is None or not setting.text or value == "null" or "${" in value:
        return override
    return f"{name}={json.dumps(value)}"


def _check_together(config: Mapping[str, Any]) -> None:
    data, train = config["data"], config["train"]
    if train["minutes"] is None and train["steps"] is None:
        raise ConfigError("The training has no end: set train.minutes or train.steps.")
    if data["pictures"] is None and data["clips"] is None:
        raise ConfigError("There is nothing to train on: set data.pictures or data.clips to a folder.")
    if data["height"] % 8 or data["width"] % 8:
        raise ConfigError(f"data.height and data.width must be multiples of 8; got {data['height']}, {data['width']}.")
    if data["pictures"] is not None and (data["canvas"][0] < data["height"] or data["canvas"][1] < data["width"]):
        raise ConfigError(f"data.canvas must be at least data.height and data.width; got {list(data['canvas'])}.")
    if config["task"] == "autoencoder" and config["sample"]["pictures"]:
        raise ConfigError("sample.pictures is set, but an autoencoder alone makes no clips: leave it null here.")
    if train["strategy"] == "fsdp" and (config["task"] == "autoencoder" or config["sample"]["pictures"]):
        what = "an autoencoder's training" if config["task"] == "autoencoder" else "sample.pictures"
        raise ConfigError(f"train.strategy fsdp divides the video network and does not go with {what}: take ddp.")
    if config["task"] == "lora" and config["init"] is None:
        raise ConfigError("A LoRA changes weights that are there: set init to the file of these.")
    if config["task"] != "autoencoder":
        if train["loss_config"] is None:
            raise ConfigError("The setting train.loss_config is missing.")
        if train["pool"] < train["fresh"]:
            raise ConfigError(f"train.pool must be at least train.fresh, {train['fresh']}; got {train['pool']}.")
