"""The widgets that describe a clip, and the VideoRequest that comes of them."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import streamlit as st

from sgm import CAMERA_MOVES, DEFAULT_VERSION, GUIDERS, SAMPLERS, VERSIONS, Version, VideoRequest

_LARGEST_SEED = 2**31 - 1
# Where the fields start that are the same for every version; the others start at the version's own value.
_START = {"camera": "auto", "motion_bucket": 127, "elevation": 10.0, "seed": 23, "sampler": "euler_edm"}
_FIELDS = (*_START, "fps", "steps", "guider", "min_guidance", "max_guidance", "frames", "decode_chunk", "cond_aug")
_CAMERA_TITLES = {"auto": "Surprise me"}
_SAMPLER_TITLES = {
    "euler_edm": "Euler EDM",
    "heun_edm": "Heun EDM",
    "euler_ancestral": "Euler ancestral",
    "dpmpp2s_ancestral": "DPM++ 2S ancestral",
    "dpmpp2m": "DPM++ 2M",
    "linear_multistep": "Linear multistep",
}
_GUIDER_TITLES = {
    "identity": "Off",
    "cfg": "Constant",
    "linear": "Rising",
    "triangle": "Triangle",
    "trapezoid": "Trapezoid",
    "spatiotemporal": "Per view and frame",
}


def current_version() -> Version:
    """The version that is chosen, known before its field is drawn: the picture's crop stands above it."""
    return VERSIONS[st.session_state.setdefault("version", DEFAULT_VERSION)]


def choose_version() -> Version:
    """The model's field; below it what is missing, and how to get it."""
    current_version()  # its start value
    installed = [version.title for version in VERSIONS.values() if version.checkpoint_path]
    st.selectbox(
        "Model",
        list(VERSIONS),
        format_func=_version_title,  # the same at all times: Streamlit finds the choice again by its title
        key="version",
        help=f"On this computer: {'; '.join(installed) or 'none'}.",
    )
    version = current_version()
    if version.checkpoint_path is None:
        st.warning(
            f"**The weights of {version.title} are not on this computer.** {plain(version.how_to_get)}\n\n"
            f"Licence: {version.licence}.",
            icon=":material/download:",
        )
        st.button("Check again", icon=":material/refresh:")
    return version


def movement(version: Version) -> VideoRequest:
    """The fields that a version takes, and what they ask for. Raises UserError where they contradict each other."""
    asked: dict[str, Any] = {"version": version.name}
    if version.camera:
        asked["camera"] = st.selectbox(
            "Camera",
            CAMERA_MOVES,
            format_func=lambda move: _CAMERA_TITLES.get(move, _title(move)),
            key=_key("camera", version),
            help="Where the camera goes. Left open, the seed decides.",
        )
    if not version.sv3d:
        asked["motion_bucket"] = st.slider(
            "Motion",
            *_range("motion_bucket", version, 1, 255),
            key=_key("motion_bucket", version),
            help="Motion bucket id. Higher moves more, and tears sooner.",
        )
    if version.name == "sv3d_p":
        asked["elevation"] = st.slider(
            "Elevation",
            *_range("elevation", version, -90.0, 90.0),
            step=1.0,
            format="%d°",
            key=_key("elevation", version),
            help="How high above the object the camera circles.",
        )
    left, right = st.columns(2)
    asked["fps"] = left.slider(
        "Frames a second",
        *_range("fps", version, 5, 30),
        key=_key("fps", version),
        help="The model is told, and the file plays at it.",
    )
    asked["steps"] = right.slider(
        "Steps",
        *_range("steps", version, 1, 100),
        key=_key("steps", version),
        help="More steps take longer and draw finer. The model was tuned for the number it starts with.",
    )
    left, right = st.columns(2, vertical_alignment="bottom")
    asked["seed"] = left.number_input(
        "Seed",
        *_range("seed", version, 0, _LARGEST_SEED),
        key=_key("seed", version),
        disabled=bool(st.session_state.get("new_seed")),
        help="The same seed and settings give the same clip.",
    )
    right.toggle("New seed each time", key="new_seed")
    with st.expander("Research settings"):
        asked.update(_research(version))
    return VideoRequest(**asked)


def ready(request: VideoRequest) -> VideoRequest:
    """The request to run now: with a seed of its own, if that is wanted."""
    return replace(request, seed=secrets.randbelow(_LARGEST_SEED + 1)) if st.session_state.get("new_seed") else request


def restore(request: VideoRequest) -> None:
    """Set the fields to a request. To be called before they are drawn."""
    version = VERSIONS[request.version]
    st.session_state["version"] = version.name
    for field in _FIELDS:
        st.session_state[_name(field, version)] = getattr(request, field)
    if request.decode_chunk == request.frames:  # all, then: an empty field
        st.session_state[_name("decode_chunk", version)] = None


def summary(settings: dict[str, Any]) -> str:
    """One line that says what ran."""
    version = VERSIONS.get(str(settings.get("version")))
    parts = [
        version.title if version else str(settings.get("version")),
        f"seed {settings.get('seed')}",
        None if version and version.sv3d else f"motion {settings.get('motion_bucket')}",
        f"camera {_title(str(settings.get('camera'))).lower()}" if version and version.camera else None,
        f"{settings.get('steps')} steps",
        _SAMPLER_TITLES.get(str(settings.get("sampler")), str(settings.get("sampler"))),
        f"{settings.get('frames')} frames at {settings.get('fps')} fps",
        f"{settings.get('width')} × {settings.get('height')}",
    ]
    return " · ".join(part for part in parts if part)


def plain(text: str) -> str:
    """Text as it is, where Markdown is read: paths have underscores, and on Windows backslashes."""
    return "".join(f"\\{char}" if char in r"\`*_[]<>$:~#" else char for char in text)


def _research(version: Version) -> dict[str, Any]:
    """The fields for those who know what a sigma is."""
    asked: dict[str, Any] = {}
    asked["sampler"] = st.selectbox(
        "Sampler",
        list(SAMPLERS),
        format_func=lambda name: _SAMPLER_TITLES.get(name, _title(name)),
        key=_key("sampler", version),
    )
    asked["guider"] = st.selectbox(
        "Guidance",
        list(GUIDERS),
        format_func=lambda name: _GUIDER_TITLES.get(name, _title(name)),
        key=_key("guider", version),
        help="How strongly the frames are held to the picture, from the first frame to the last.",
    )
    if asked["guider"] != "identity":
        left, right = st.columns(2)
        for column, field, label in ((left, "min_guidance", "Lowest scale"), (right, "max_guidance", "Highest scale")):
            low_high = _range(field, version, 0.0, 20.0)
            asked[field] = column.number_input(label, *low_high, step=0.1, key=_key(field, version))
    left, right = st.columns(2)
    asked["frames"] = left.number_input(
        "Frames",
        *_range("frames", version, 1, 60),
        key=_key("frames", version),
        help=f"The model was trained on {version.frames}.",
    )
    asked["decode_chunk"] = right.number_input(
        "Decoded at once",
        1,
        60,
        value=None,
        placeholder="All",
        key=_name("decode_chunk", version),
        help="Frames that are decoded together. Fewer need less memory.",
    )
    asked["cond_aug"] = st.number_input(
        "Conditioning noise",
        *_range("cond_aug", version, 0.0, 1.0),
        step=0.01,
        format="%.5g",
        key=_key("cond_aug", version),
        help="Noise on the picture before the model sees it. Higher drifts from the picture.",
    )
    return asked


def _name(field: str, version: Version) -> str:
    """A field's key in the session: what starts at each version's own value is kept by version."""
    return field if field in _START else f"{field}:{version.name}"


def _key(field: str, version: Version) -> str:
    """The same, with the start value in place."""
    name = _name(field, version)
    if name not in st.session_state:
        st.session_state[name] = _START[field] if field in _START else getattr(version, field)
    return name


def _range(field: str, version: Version, low: Any, high: Any) -> tuple[Any, Any]:
    """The field's range, after a restored value from outside has been brought into it: Streamlit would refuse it."""
    name = _key(field, version)
    value = st.session_state[name]
    if not (isinstance(value, type(low)) and low <= value <= high):
        st.session_state[name] = type(low)(min(max(value, low), high))
    return low, high


def _version_title(name: str) -> str:
    version = VERSIONS[name]
    return f"{version.title} · {version.frames} frames · {version.width} × {version.height}"


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()
