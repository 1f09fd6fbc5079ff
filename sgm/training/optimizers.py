"""Optimizers and learning-rate schedules of a training config: those that it may name, built and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from sgm.config import ConfigError
from sgm.errors import printable, shown


def optimizer(parameters: Iterable[nn.Parameter], train: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of a config, with its `lr` and, where the class takes it, `weight_decay`.

    Raises ConfigError, which names the setting, for a package that is not installed and for wrong parameters.
    """
    config = train["optimizer"]
    cls = _class(config["target"], "train.optimizer")
    if cls.__module__.startswith("bitsandbytes."):
        cls = _without_waiting(cls)
    given: dict[str, Any] = {"lr": train["lr"], **config["params"]}
    if "weight_decay" in signature(cls).parameters:
        given.setdefault("weight_decay", train["weight_decay"])
    trained = list(parameters)
    names, scaled = signature(cls).parameters, train["precision"] == "16-mixed"
    if "fused" in names and "foreach" not in given and not scaled and all(p.is_cuda for p in trained):
        given.setdefault("fused", True)  # otherwise a step takes as much memory again as the gradients
    return _built(cls, "train.optimizer", config["target"], trained, given)


def schedule(of: torch.optim.Optimizer, train: Mapping[str, Any]) -> LRScheduler | None:
    """The learning-rate schedule of a config, or None for that by warmup and decay. Errors: as `optimizer`."""
    config = train["schedule"]
    if config is None:
        return None
    cls = _class(config["target"], "train.schedule")
    return _built(cls, "train.schedule", config["target"], of, config["params"])


def check(train: Mapping[str, Any]) -> None:
    """Raise ConfigError as both would, from a single made-up parameter, for a step of each."""
    parameter = nn.Parameter(torch.zeros(2, 2))
    try:
        of = optimizer([parameter], train)
        if (course := schedule(of, train)) is None:
            return
        parameter.grad = torch.zeros_like(parameter)
        if type(of).__module__.startswith("torch."):  # others may need the GPU
            of.step()
        course.step()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"train.optimizer and train.schedule do not work: {printable(error, 200)}.") from error


def _without_waiting(cls: Any) -> Any:
    """bitsandbytes' optimizer class without its synchronization after each parameter, which paged states alone need."""
    module: Any = import_module("bitsandbytes.optim.optimizer")

    class Unsynchronized(cls):
        def step(self, closure: Any = None) -> Any:
            waits, module.sync_gpu = getattr(module, "sync_gpu", None), lambda tensor: None
            try:
                return super().step(closure)
            finally:
                module.sync_gpu = waits

    return cls if cls.__name__.startswith("Paged") else Unsynchronized


def _class(target: str, setting: str) -> Any:
    package, _, name = target.rpartition(".")
    if find_spec(package.partition(".")[0]) is None:
        needed = package.partition(".")[0]
        raise ConfigError(
            f"{setting}.target is {target}, but {needed} is not installed: run `python -m pip install {needed}` first, "
            "or take torch.optim.AdamW."
        )
    return getattr(import_module(package), name)


def _built(cls: Any, setting: str, target: str, first: Any, params: Mapping[str, Any]) -> Any:
    known = [name for name in signature(cls).parameters if name not in ("self", "params", "optimizer")]
    for name in params:
        if name not in known:
            takes = f"it takes {', '.join(known)}"
            raise ConfigError(f"{setting}.params has {shown(name)}, which {target} does not take; {takes}.")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in params.items()}
    try:
        return cls(first, **given)
    except Exception as error:
        raise ConfigError(f"{setting}: {target} cannot be made of these params: {printable(error, 200)}.") from error
