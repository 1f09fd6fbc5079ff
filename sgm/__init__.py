"""Image-to-video diffusion: Stable Video Diffusion's stack, small enough to read, exact enough for official weights.

The public names, listed in `__init__.pyi`, are imported when they are first used, so `import sgm` itself costs nothing.
"""

from __future__ import annotations

from typing import Any

from lazy_loader import attach_stub

__version__ = "0.2.0"
_load, _list, __all__ = attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sgm' has no attribute {name!r}")  # Python's own words
    return _load(name)


def __dir__() -> list[str]:
    return [*_list(), "__version__"]
