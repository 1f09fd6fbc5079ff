"""The widgets that describe a clip, and the VideoRequest that comes of them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from typing import Any

import altair as alt
import streamlit as st
from streamlit.errors import StreamlitAPIException

from app.orbit import choose_orbit, chosen_orbit, describe_orbit, numbers, show_orbit, text_of
from sgm import CAMERA_MOVES, GUIDERS, SAMPLERS, VERSIONS, UserError, Version, VideoRequest, best_version, curves

_LARGEST_SEED = 2**31 - 1
_ORBIT = ("orbit", "elevation", "elevations", "azimuths", "image_frame_ratio")
# The fields that one value serves whatever the version; the others are kept for each version.
_SHARED = ("camera", "motion_bucket", *_ORBIT, "seed", "s_churn", "eta", "order")
_FIELDS = (
    *_SHARED,
    *(
        "sampler",
        "fps",
        "steps",
        "guider",
        "min_guidance",
        "max_guidance",
        "sigma_min",
        "sigma_max",
        "rho",
        "cond_aug",
    ),
    *("frames", "width", "height", "decode_chunk"),
)
_SWITCHES = ("version", "new_seed", "wide_motion")
_PRESETS = {
    "Balanced": "The model's own values.",
    "Calm": "Motion 60: little moves, and little tears.",
    "Lively": "Motion 200: much moves.",
    "Quick draft": "A third of the steps: to see what a picture may become.",
}
_LINE = "#1a9a94"  # reads on white and on black
_OPTIONS = {
    "s_churn": ("Churn", 0.0, 100.0, "Fresh noise while sampling, shared out over the steps. 0: none."),
    "eta": ("Eta", 0.0, 1.0, "How much fresh noise each step puts back. 0: none, 1: all."),
    "order": ("Order", 1, 8, "How many earlier steps count."),
}
_CAMERA_TITLES = {"auto": "Surprise me"}
_SAMPLER_TITLES = {
    "euler_edm": "Euler EDM",
    "heun_edm": "Heun EDM",
    "euler_ancestral": "Euler ancestral",
    "dpmpp_2s_ancestral": "DPM++ 2S ancestral",
    "dpmpp_2m": "DPM++ 2M",
    "linear_multistep": "Linear multistep",
    "lcm": "LCM",
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
    if "version" not in st.session_state:
        st.session_state["version"] = best_version()
    return VERSIONS[st.session_state["version"]]


def current_size() -> tuple[int, int]:
    """(width, height) in pixels, known before its fields are drawn; the version's own while what is typed is wrong."""
    version = current_version()
    width, height = (st.session_state.get(_name(side, version)) for side in ("width", "height"))
    if width and height and width % version.multiple == 0 and height % version.multiple == 0:
        return width, height
    return version.width, version.height


def choose_version() -> Version:
    """The model's field."""
    st.selectbox(
        "Model",
        list(VERSIONS),
        list(VERSIONS).index(current_version().name),
        format_func=_version_title,  # the same at all times: Streamlit finds the choice again by its title
        key="version",
    )
    return current_version()


def movement(version: Version) -> VideoRequest:
    """The fields that a version takes, and what they ask for. Raises UserError where they contradict each other."""
    asked: dict[str, Any] = {"version": version.name}
    _follow(version)
    _choose_preset(version)
    if version.camera:
        asked["camera"] = st.selectbox(
            "Camera",
            CAMERA_MOVES,
            CAMERA_MOVES.index(st.session_state[_key("camera", version)]),
            format_func=lambda move: _CAMERA_TITLES.get(move, _title(move)),
            key=_key("camera", version),
            help="Where the camera goes. Left open, the seed decides.",
        )
    if not version.sv3d:
        asked["motion_bucket"] = st.slider(
            "Motion",
            *_range("motion_bucket", version, *((0, 511) if st.session_state.get("wide_motion") else (1, 255))),
            key=_key("motion_bucket", version),
            help="Motion bucket id. Higher moves more, and tears sooner.",
        )
        if asked["motion_bucket"] > 255:
            st.caption(":material/warning: Outside the usual range; quality may drop.")
    if version.sv3d:
        asked["image_frame_ratio"] = st.session_state[_key("image_frame_ratio", version)]
    if version.name == "sv3d_p":
        elevation = _range("elevation", version, -90.0, 90.0)
        if choose_orbit(st.session_state[_key("frames", version)]):
            asked["elevation"] = st.slider(
                "Elevation",
                *elevation,
                step=1.0,
                format="%d°",
                key="elevation",
                help="How high above the object the camera circles.",
            )
    orbit = st.container()
    left, right = st.columns(2)
    asked["fps"] = left.slider(
        "Frames a second",
        *_range("fps", version, 5, 30),
        key=_key("fps", version),
        help="The clip plays at it." if version.sv3d else "The model is told, and the file plays at it.",
    )
    asked["steps"] = right.slider(
        "Steps",
        *_range("steps", version, 1, 200),
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
    right.toggle("New seed each time", bool(st.session_state.get("new_seed")), key="new_seed")
    with st.expander("Research settings"):
        asked.update(_research(version))
        if version.name == "sv3d_p":
            asked.update(chosen_orbit())
        request = VideoRequest(**asked)
        _charts(request)
    if version.sv3d:
        with orbit:
            show_orbit(request)
    return request


def ready(request: VideoRequest) -> VideoRequest:
    """The request to run now: with a seed of its own, if that is wanted."""
    return replace(request, seed=secrets.randbelow(_LARGEST_SEED + 1)) if st.session_state.get("new_seed") else request


def restore(request: VideoRequest) -> None:
    """Set the fields to a request. To be called before they are drawn."""
    version = VERSIONS[request.version]
    st.session_state["version"] = version.name
    st.session_state["new_seed"] = False
    st.session_state["followed"] = version
    if not 1 <= (request.motion_bucket or 0) <= 255:
        st.session_state["wide_motion"] = True
    for field in _FIELDS:
        value = getattr(request, field)
        st.session_state[_name(field, version)] = text_of(value) if isinstance(value, tuple) else value
    if request.decode_chunk == request.frames:  # all, then: an empty field
        st.session_state[_name("decode_chunk", version)] = None


def request_from(settings: Mapping[str, Any], base: VideoRequest | None = None) -> VideoRequest:
    """A request by settings from elsewhere, a clip's or an address's, over `base`; what is no setting is ignored.

    Raises UserError where a value is wrong.
    """
    version = str(settings.get("version", base.version if base else best_version()))
    start = base if base and base.version == version else VideoRequest(version)
    given: dict[str, Any] = {}
    for field, value in start.settings().items():
        if field in settings:
            kind, text = type(value), settings[field]
            if not isinstance(text, str):
                given[field] = text
                continue
            try:
                given[field] = numbers(field, text) if kind is list else kind(text)
            except UserError:
                raise
            except ValueError:
                raise UserError(f"{field} must be a number; got {text!r}.") from None
    if "frames" in given and "decode_chunk" not in given:
        given["decode_chunk"] = None
    return replace(start, **given)


def address_of(request: VideoRequest, base: VideoRequest | None = None) -> dict[str, str]:
    """What `request_from` needs to give the request again: what differs from `base`, or from the version's own.

    Nothing where all is as the page opens; else the version is named, for another may be the best one tomorrow.
    """
    start = base if base and base.version == request.version else VideoRequest(request.version)
    names = ("fit",) if base is None else ()
    settings, usual = request.settings(), start.settings()
    if settings["decode_chunk"] == settings["frames"]:
        usual["decode_chunk"] = settings["decode_chunk"]
    changed = {
        name: text_of(value) if isinstance(value, list) else str(value)
        for name, value in settings.items()
        if value != usual[name] and name not in names
    }
    if request.version != base.version if base else changed or request.version != best_version():
        changed["version"] = request.version
    return changed


@contextmanager
def kept() -> Iterator[None]:
    """Keep the fields that are not drawn meanwhile, until they are drawn again: Streamlit would forget them.

    Those that are drawn are left alone: to set them would undo what somebody has changed since.
    """
    for key in st.session_state.get("kept", ()):
        if key in st.session_state:
            st.session_state[key] = st.session_state[key]
    yield
    kept = []
    for key in list(st.session_state):
        if isinstance(key, str) and (key.partition(":")[0] in _FIELDS or key in _SWITCHES):
            with suppress(StreamlitAPIException):  # it is drawn
                st.session_state[key] = st.session_state[key]
                kept.append(key)
    st.session_state["kept"] = kept


def summary(settings: dict[str, Any]) -> str:
    """One line that says what ran."""
    version = VERSIONS.get(str(settings.get("version")))
    parts = [
        version.title if version else str(settings.get("version")),
        f"seed {settings.get('seed')}",
        None if version and version.sv3d else f"motion {settings.get('motion_bucket')}",
        describe_orbit(settings) if version and version.name == "sv3d_p" else None,
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


def _follow(version: Version) -> None:
    """A field that all versions share goes with the version, from one's own value to the other's, until it is set."""
    before: Version = st.session_state.get("followed", version)
    st.session_state["followed"] = version
    if st.session_state[_key("motion_bucket", before)] == before.motion_bucket:
        st.session_state["motion_bucket"] = version.motion_bucket


def _choose_preset(version: Version) -> None:
    names = [name for name in _PRESETS if not version.sv3d or name in ("Balanced", "Quick draft")]
    if _preset("Quick draft", version) == _preset("Balanced", version):
        names.remove("Quick draft")
    fields = ("motion_bucket", "steps", "fps")
    now = {field: st.session_state[_key(field, version)] for field in fields}
    about = " ".join(f"**{name}**: {_PRESETS[name]}" for name in names)
    custom = now not in [_preset(name, version) for name in names]
    with st.container(key="preset"):
        st.markdown(f"Preset{': custom' if custom else ''}", help=about)
        # Buttons, which have no state: a browser that is a step behind would send an older choice back with the next
        # change of a slider, and so undo both.
        with st.container(horizontal=True, gap="xsmall", key="presets"):
            for name in names:
                chosen = _preset(name, version) == now
                st.button(
                    name,
                    key=f"preset_{name}",
                    type="primary" if chosen else "secondary",
                    icon=":material/check:" if chosen else None,
                    on_click=_use_preset,
                    args=(name, version),
                )


def _use_preset(name: str, version: Version) -> None:
    for field, value in _preset(name, version).items():
        st.session_state[_name(field, version)] = value


def _preset(name: str, version: Version) -> dict[str, int]:
    motion = {"Calm": 60, "Lively": 200}.get(name, version.motion_bucket)
    steps = max(4, version.steps // 3) if name == "Quick draft" else version.steps
    return {"motion_bucket": motion, "steps": steps, "fps": version.fps}


def _research(version: Version) -> dict[str, Any]:
    """The fields for those who know what a sigma is."""
    asked: dict[str, Any] = {}
    asked["sampler"] = st.selectbox(
        "Sampler",
        list(SAMPLERS),
        list(SAMPLERS).index(st.session_state[_key("sampler", version)]),
        format_func=lambda name: _SAMPLER_TITLES.get(name, _title(name)),
        key=_key("sampler", version),
    )
    for field in SAMPLERS[str(asked["sampler"])].options:
        label, low, high, about = _OPTIONS[field]
        step = 1 if field == "order" else 0.1
        limits = _range(field, version, low, high)
        asked[field] = st.number_input(label, *limits, step=step, key=_key(field, version), help=about)
    asked["guider"] = st.selectbox(
        "Guidance",
        list(GUIDERS),
        list(GUIDERS).index(st.session_state[_key("guider", version)]),
        format_func=lambda name: _GUIDER_TITLES.get(name, _title(name)),
        key=_key("guider", version),
        help="How strongly the frames are held to the picture, from the first frame to the last.",
    )
    if asked["guider"] != "identity":
        left, right = st.columns(2)
        for column, field, label in ((left, "min_guidance", "Lowest scale"), (right, "max_guidance", "Highest scale")):
            limits = _range(field, version, 0.0, 20.0)
            asked[field] = column.number_input(label, *limits, step=0.1, key=_key(field, version))
    columns = st.columns(3)
    schedule = (
        ("sigma_min", "Sigma min", 1e-4, 10.0),
        ("sigma_max", "Sigma max", 0.1, 2000.0),
        ("rho", "Rho", 1.0, 20.0),
    )
    for column, (field, label, low, high) in zip(columns, schedule, strict=True):
        limits = _range(field, version, low, high)
        asked[field] = column.number_input(label, *limits, format="%.5g", key=_key(field, version))
    asked["cond_aug"] = st.number_input(
        "Conditioning noise",
        *_range("cond_aug", version, 0.0, 1.0),
        step=0.01,
        format="%.5g",
        key=_key("cond_aug", version),
        help="Noise on the picture before the model sees it. Higher drifts from the picture.",
    )
    left, right = st.columns(2)
    for column, side in ((left, "width"), (right, "height")):
        asked[side] = column.number_input(
            side.capitalize(),
            *_range(side, version, version.multiple, 2048),
            step=version.multiple,
            key=_key(side, version),
            help=f"A multiple of {version.multiple}. The trained size, {version.width} × {version.height}, works best.",
        )
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
        value=st.session_state.get(_name("decode_chunk", version)),
        placeholder="What fits",
        key=_name("decode_chunk", version),
        help="Frames that are worked on at once in decoding. Lower uses less memory; the picture stays the same.",
    )
    if not version.sv3d:
        wide = bool(st.session_state.get("wide_motion"))
        st.toggle("Motion from 0 to 511", wide, key="wide_motion", help="The models were trained up to 255.")
    return asked


def _charts(request: VideoRequest) -> None:
    """What the settings mean, before anything is computed."""
    sigmas, scales = curves(request)
    for title, values, axis, scale in (
        ("Noise (sigma) at each step", sigmas, "Step", alt.Scale(type="log")),
        ("Guidance scale of each frame", scales, "Frame", alt.Scale(zero=False)),
    ):
        st.caption(title)
        points = [{axis: i, "value": round(value, 6)} for i, value in enumerate(values, 1)]
        line = alt.Chart(alt.Data(values=points)).mark_line(color=_LINE, point={"size": 18, "color": _LINE})
        ticks = alt.Axis(tickMinStep=1, tickCount=6, grid=False, format="d")
        st.altair_chart(
            line.encode(
                x=alt.X(f"{axis}:Q", axis=ticks, scale=alt.Scale(domain=[1, max(2, len(values))])),
                y=alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=4, format="~g")),
                tooltip=[f"{axis}:Q", "value:Q"],
            ).properties(height=130, description=f"{title}: from {values[0]:.4g} to {values[-1]:.4g}.")
        )


def _name(field: str, version: Version) -> str:
    """A field's key in the session: what starts at each version's own value is kept by version."""
    return field if field in _SHARED else f"{field}:{version.name}"


def _key(field: str, version: Version) -> str:
    """The same, with the start value in place."""
    name = _name(field, version)
    if name not in st.session_state:
        st.session_state[name] = getattr(_usual(version.name), field)
    return name


@cache
def _usual(version: str) -> VideoRequest:
    return VideoRequest(version)


def _range(field: str, version: Version, low: Any, high: Any) -> tuple[Any, Any, Any]:
    """The field's range, and its value, into which one restored from outside is brought: Streamlit would refuse it.

    The value is in the session already; a browser that draws the field only after a later run would not know it.
    """
    name = _key(field, version)
    value = st.session_state[name]
    if not (isinstance(value, type(low)) and low <= value <= high):
        st.session_state[name] = type(low)(min(max(value, low), high))
    return low, high, st.session_state[name]


def _version_title(name: str) -> str:
    version = VERSIONS[name]
    return f"{version.title} · {version.frames} frames · {version.width} × {version.height}"


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()
