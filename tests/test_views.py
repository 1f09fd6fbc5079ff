"""Clips of an object to clips of other sides: what is read of a clip, what is asked, the way through to the files."""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sgm import (
    VERSIONS,
    VIEW_VERSIONS,
    Progress,
    UserError,
    Version,
    VideoRequest,
    ViewsRequest,
    cut_off_note,
    generate,
    generate_views,
    is_marked,
    kinds,
    load_engine,
    open_clip,
    read_frames,
    read_recipe,
    request_of,
    typical_seconds,
    version_status,
    write_clip,
    write_video,
)
from sgm.cli.commands import cli
from sgm.cluster.maker import Maker
from sgm.conditioning.views import dense_passes, view_angles, window_passes
from sgm.engine import build_engine
from sgm.installed import recognise
from sgm.loras import loras_of
from sgm.memory import GIB, choose
from sgm.merging import merged
from tests import small_model

SIZE = {"width": 64, "height": 64}


Colour = tuple[int, ...]


def drawn(count: int, size: tuple[int, int] = (90, 60), background: Colour = (255, 255, 255)) -> list[Image.Image]:
    """A ball of 20 pixels that rolls from the left to the right."""
    frames = []
    for i in range(count):
        frame = Image.new("RGBA" if len(background) == 4 else "RGB", size, background)
        ImageDraw.Draw(frame).ellipse((10 + 4 * i, 20, 29 + 4 * i, 39), (200, 60 + 5 * i, 20))
        frames.append(frame)
    return frames


def saved(path: Path, frames: Sequence[Image.Image]) -> Path:
    if path.suffix == ".mp4":
        return write_video(path, np.stack([np.asarray(frame) for frame in frames]), 10)
    if not path.suffix:
        path.mkdir()
        for i, frame in enumerate(frames):
            frame.save(path / f"{i:03}.png")
        return path
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, lossless=True, disposal=2)
    return path


WEIGHTS: dict[str, dict[str, torch.Tensor]] = {}  # of small models, by their golden case
WHITE, CLEAR = (255, 255, 255), (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "background"),
    [
        ("clip.mp4", WHITE),
        ("clip.gif", WHITE),
        ("frames", WHITE),
        ("clip.gif", CLEAR),
        ("clip.webp", CLEAR),
        ("frames", CLEAR),
    ],
)
def test_the_object_is_centred_by_one_crop_whatever_the_clip_s_kind(
    tmp_path: Path, name: str, background: Colour
) -> None:
    clip = open_clip(saved(tmp_path / name, drawn(9, background=background)), 8)
    assert (len(clip.frames), clip.length) == (8, 9)
    assert clip.described(name, 8) == f"{name} has 9 frames: the first 8 are taken."
    request = ViewsRequest("sv4d2", frames=12, image_frame_ratio=0.75, **SIZE)
    frames = request.family.prepare_clip(clip.frames, request)
    assert [frame.size for frame in frames] == [(64, 64)] * 12
    assert all(frames[i].tobytes() == frames[14 - i].tobytes() for i in range(8, 12))  # it runs back
    objects = [np.argwhere(np.asarray(frame).min(axis=2) < 128) for frame in frames[:8]]
    lefts, rights = ([float(pixels[:, 1].min()), float(pixels[:, 1].max())] for pixels in (objects[0], objects[-1]))
    edge = 2.5 if name == "clip.mp4" else 1  # which is blurred in an MP4
    assert lefts[0] == pytest.approx(8, abs=edge)  # 48 of 64 pixels, the whole way of the object
    assert rights[1] == pytest.approx(55, abs=edge)
    for pixels in objects:
        assert pixels[:, 0].mean() == pytest.approx(31.5, abs=1)
        assert np.ptp(pixels[:, 1]) + 1 == pytest.approx(20, abs=edge + 0.1)  # no frame has a scale of its own


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (drawn(1), "A single picture does not move"),
        ([*drawn(2), *drawn(1, (80, 60))], "Frame 3 has 80×60 pixels, the first 90×60: give frames of one size."),
        ([Image.new("RGBA", (40, 40))] * 3, "No object was found in the clip"),
    ],
)
def test_what_is_no_clip_of_an_object_is_refused(frames: list[Image.Image], said: str) -> None:
    request = ViewsRequest("sv4d2", **SIZE)
    with pytest.raises(UserError, match=said):
        request.family.prepare_clip(frames, request)


def test_a_clip_is_stored_as_it_is_and_what_is_clear_is_white_in_whole_frames(tmp_path: Path) -> None:
    frames = [drawn(1)[0], *drawn(2, background=(9, 9, 9, 0))]
    stored = open_clip(write_clip(tmp_path / "input.mkv", frames), 9).frames
    assert [a.tobytes() for a in stored] == [b.convert("RGBA").tobytes() for b in frames]
    request = ViewsRequest("sv4d2", fit="crop", **SIZE)
    seen = np.asarray(request.family.prepare_clip(stored, request))
    assert seen[:, :4].min() > 250


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "frames"])
def test_frames_beyond_the_memory_of_a_reader_are_refused(tmp_path: Path, name: str, monkeypatch: Any) -> None:
    path = saved(tmp_path / name, drawn(6))
    monkeypatch.setattr("sgm.media.clip.MAX_DECODED", 4 * 90 * 60 * 3)
    assert len(open_clip(path, 4).frames) == 4
    with pytest.raises(UserError, match="The clip's first 5 frames of 90×60 pixels take more than"):
        open_clip(path, 9)


def test_frames_of_a_folder_come_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        Image.new("RGB", (number, 2)).save(tmp_path / f"Frame {number}.png")
    assert [frame.width for frame in open_clip(tmp_path, 9).frames] == [1, 9, 10]


def test_an_object_that_leaves_the_picture_is_seen() -> None:
    note = cut_off_note(drawn(20, background=CLEAR))
    assert note == "The object reaches the picture's edge in frames 16, 17, 18, 19, 20: what lies beyond it is missing."
    assert cut_off_note(drawn(9, background=CLEAR)) == ""


def test_passes() -> None:
    anchors, *windows = dense_passes(5)
    assert (anchors.times, anchors.shown) == ((4, 8, 12, 16, 20), 0)
    assert [window.times for window in windows] == [tuple(range(t, t + 5)) for t in (0, 4, 8, 12, 16)]
    assert windows[1].directions == [((8, 7, 6, 5, 4), 8), ((4, 5, 6, 7, 8), 4)]
    starts = {n: [step.times[0] for step in window_passes(n, 12)] for n in (12, 21, 23, 40)}
    assert starts == {12: [0], 21: [0, 9], 23: [0, 11], 40: [0, 11, 22, 28]}
    assert [step.shown for step in window_passes(21, 12)] == [None, 9]
    assert [step.times[0] for step in window_passes(21, 5)] == [0, 4, 8, 12, 16]


def test_angles_count_from_the_input_s_view() -> None:
    polars, azimuths = view_angles([20, 20, -10], [350, 20, 80], relative_elevation=True)
    assert torch.rad2deg(polars).tolist() == pytest.approx([90, 120])
    assert torch.rad2deg(azimuths).tolist() == pytest.approx([30, 90])
    assert torch.rad2deg(view_angles([20, 20], [0, 1], relative_elevation=False)[0]).tolist() == pytest.approx([70])


@pytest.mark.parametrize(
    ("version", "choices", "said"),
    [
        ("sv4d", {"frames": 20}, "sv4d makes 21 frames, no more and no fewer; got 20"),
        ("sv4d2", {"frames": 11}, "frames must be 12 or more for sv4d2; got 11"),
        ("sv4d2", {"azimuths": [0, 90]}, "azimuths must be 5 numbers, one a view, the first of them the clip's own"),
        ("sv4d", {"azimuths": [0] * 9}, "azimuths does not belong to version 'sv4d'"),
        ("sv4d2", {"motion_bucket": 3}, "motion_bucket does not belong to version 'sv4d2'"),
        ("svd", {}, "version must be one of sv4d, sv4d2, sv4d2_8views; got 'svd'"),
    ],
)
def test_wrong_settings_are_refused(version: str, choices: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ViewsRequest(version, **choices)


def test_what_runs_is_not_what_the_yamls_say() -> None:
    requests = map(ViewsRequest, VIEW_VERSIONS)
    assert {r.version: (r.guider, r.min_guidance, r.max_guidance, r.sigma_max) for r in requests} == {
        "sv4d": ("spatiotemporal", 1.0, 2.0, 700.0),
        "sv4d2": ("linear", 1.0, 2.0, 700.0),
        "sv4d2_8views": ("spatiotemporal", 1.5, 2.5, 700.0),
    }


@pytest.mark.parametrize("version", VIEW_VERSIONS)
def test_time_and_memory_are_those_of_the_frames_of_all_passes(version: str) -> None:
    request = ViewsRequest(version)
    passes = len(request.family.passes(request))
    before = request.first.steps if request.first else 0
    assert request.total_steps == before + passes * request.steps
    assert request.stage(request.total_steps).endswith(
        f" {passes - bool(before)}, step {request.steps} of {request.steps}"
    )
    typical = typical_seconds(request, "cuda")
    one = VideoRequest("svd_xt", frames=request.rows, steps=request.steps, width=576, height=576)
    single = typical_seconds(one, "cuda")
    first = sum(map(sum, typical_seconds(request.first, "cuda").values())) if request.first else 0
    assert sum(typical["sample"]) == pytest.approx(passes * sum(single["sample"]) + first, rel=0.2)
    engine = build_engine(VIEW_VERSIONS[version].config_path).half()
    engine.version = version
    assert choose(engine, request.rows, 576, 576, True, 20 * GIB).offload is False
    assert choose(engine, request.rows, 576, 576, True, 8 * GIB).peak < 6 * GIB


def test_the_walk_goes_once_around_while_the_clip_goes_on() -> None:
    request = ViewsRequest("sv4d2", azimuths=[350, 80, 20, 200, 10])
    walk = request.family.walk(request)
    assert list(dict.fromkeys(walk)) == [0, 4, 2, 1, 3]
    assert [walk.count(view) for view in (0, 4, 2, 1, 3)] == [5, 4, 4, 4, 4]


def test_a_share_of_the_frame_is_that_of_the_authors_program() -> None:
    assert [ViewsRequest(name).image_frame_ratio for name in VIEW_VERSIONS] == [0.917, 0.9, 0.9]
    request = ViewsRequest("sv4d", width=576, height=576)
    frame = request.family.prepare_clip(drawn(2, (300, 300), CLEAR), request)[0]
    assert frame.size == (576, 576)
    seen = np.argwhere(np.asarray(frame).min(axis=2) < 128)
    assert np.ptp(seen[:, 1]) + 1 < round(0.917 * 576)
    prepared = request.family.prepare_clip(drawn(2), request)
    both = np.concatenate([np.argwhere(np.asarray(frame).min(axis=2) < 128) for frame in prepared])
    assert np.ptp(both[:, 1]) + 1 == pytest.approx(0.917 * 576, abs=8)  # of both frames' objects, soft at the edge


def test_weights_are_told_apart_by_their_tensors(tmp_path: Path) -> None:
    names = {"sv3d_p": ["sv3d_p"], "sv4d": ["sv4d"], "sv4d2": ["sv4d2", "sv4d2_8views"]}
    for name, versions in names.items():
        path = small_model.write_empty(tmp_path / f"{name}.safetensors", small_model.official_layout(name))
        assert recognise(path) == versions


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a small model of a golden case's kind, with made-up weights, in a version's place."""
    monkeypatch.setenv("SGM_CHECKPOINTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def put(name: str, case: str, **changes: Any) -> None:
        versions = VIEW_VERSIONS if name in VIEW_VERSIONS else VERSIONS
        monkeypatch.setitem(versions, name, versions[name])  # which is put back
        config = small_model.put_small(name, case, tmp_path, **changes)
        if case not in WEIGHTS:
            WEIGHTS[case] = small_model.state_of(small_model.made_up(config))
        save_file(WEIGHTS[case], tmp_path / f"{name}.safetensors")
        kinds._fingerprint.cache_clear()

    yield put
    kinds._fingerprint.cache_clear()


SV4D2 = {"times": 3, "frames": 5}


def test_a_clip_becomes_views_and_they_can_be_made_again(put: Callable[..., None]) -> None:
    put("sv4d2", "sv4d2_small", times=3, frames=3)  # one window
    saved(Path("walk.mp4"), drawn(7))
    options = ["--version", "sv4d2", "--width", "64", "--height", "64", "--steps", "1"]

    def sample(*args: str):
        return CliRunner().invoke(cli, ["sample", "walk.mp4", *args], catch_exceptions=False)

    run = sample(*options, "--out", "here", "--azimuths", "10,20,90,180,270")
    assert run.exit_code == 0, run.stderr
    assert "walk.mp4 has 7 frames: the first 3 are taken." in run.stderr
    folder = Path("here") / "walk-sv4d2-23"
    names = ["input.mp4", *(f"view-{i}.mp4" for i in range(1, 5)), "grid.mp4", "walk.mp4"]
    paths = [folder / name for name in names]
    assert [Path(line) for line in run.stdout.split()] == paths
    clips = [read_frames(path)[0] for path in paths]
    assert {clip.shape for clip in (*clips[:-2], clips[-1])} == {(3, 64, 64, 3)}
    assert clips[-2].shape[0] == 3
    settings = read_recipe(paths[1])
    assert isinstance(request_of(settings), ViewsRequest)
    assert settings["azimuths"] == [10, 20, 90, 180, 270]
    assert [is_marked(read_recipe(path)) for path in paths] == [False, *[True] * 6]  # no model made the input
    again = sample("--recipe", str(paths[2]), "--out", "here")
    assert again.exit_code == 0, again.stderr
    other = Path("here") / "walk-sv4d2-23-2"
    assert all(np.array_equal(read_frames(other / path.name)[0], clip) for path, clip in zip(paths, clips, strict=True))
    without = CliRunner().invoke(cli, ["repeat", str(paths[3])])
    assert without.exit_code == 2
    assert "does not hold the clip that it was made of: give it with --picture" in without.stderr
    write_clip(folder / "input.mkv", open_clip(Path("walk.mp4"), 3).frames)  # as the page stores it
    (folder / "job.json").write_text("{}")
    for path, given in ((paths[0], []), (paths[3], []), (paths[5], ["--picture", "walk.mp4"])):
        repeated = CliRunner().invoke(cli, ["repeat", str(path), *given], catch_exceptions=False)
        assert (repeated.exit_code, repeated.stdout) == (0, "identical\n"), repeated.stderr
    assert "several: give a folder" in sample(*options, "--out", "x.mp4").stderr
    half = CliRunner().invoke(cli, ["convert", "sv4d2.safetensors", "half.safetensors", "--dtype", "fp16"])
    assert half.exit_code == 0, half.stderr
    kept, whole = load_file("half.safetensors"), load_file("sv4d2.safetensors")
    assert kept.keys() == whole.keys()
    assert all(torch.equal(value, whole[name].half()) for name, value in kept.items())


def test_what_a_clip_lacks_is_said_before_the_work(put: Callable[..., None]) -> None:
    put("sv4d2", "sv4d2_small", **SV4D2)
    options = ["--version", "sv4d2", "--width", "64", "--height", "64", "--steps", "1"]
    faint = [Image.new("RGBA", (40, 30), (99, 0, 0, i)) for i in range(3)]
    for frames, name, said in (
        (drawn(1), "one.gif", "A single picture does not move: give a clip of two frames or more."),
        ([*drawn(2), *drawn(1, (80, 60))], "sizes", "Frame 3 has 80×60 pixels, the first 90×60: give frames of one"),
        (faint, "none", "No object was found in the clip: give one whose background is transparent, white or plain."),
        (drawn(1), "one.png", "one.png is a PNG picture, which does not move: give a clip, or a folder of its frames."),
        ([], "gone.mp4", "There is no clip at gone.mp4: give a video, an animation or a folder of frames."),
    ):
        if frames:
            saved(Path(name), frames)
        run = CliRunner().invoke(cli, ["sample", name, *options])
        assert run.exit_code in (1, 2)
        assert said in " ".join(run.stderr.split())
        assert not Path("outputs").exists() or not list(Path("outputs").iterdir())
    run = CliRunner().invoke(cli, ["sample", "one.gif", "--version", "sv4d"])  # whose weights are not there
    assert "A single picture does not move" in run.stderr
    assert not run.stderr.startswith("one.gif has")
    saved(Path("long"), drawn(5, (26, 60), CLEAR) * 200)
    run = CliRunner().invoke(cli, ["sample", "long", *options], catch_exceptions=False)
    assert run.exit_code == 0, run.stderr
    assert "long has 1000 frames: the first 5 are taken." in run.stderr
    assert "reaches the picture's edge in frames 1, 2, 3, 4: what lies beyond it is missing." in run.stderr


def test_progress_runs_over_all_windows_and_cancels_in_any(put: Callable[..., None]) -> None:
    put("sv4d2", "sv4d2_small", **SV4D2)
    engine, request = load_engine("sv4d2"), ViewsRequest("sv4d2", steps=2, **SIZE)
    clip = request.family.prepare_clip(drawn(5), request)
    seen: list[Progress] = []
    views = generate_views(engine, request, clip, seen.append)
    steps = [progress for progress in seen if progress.phase == "sample"]
    assert [(progress.step, progress.total) for progress in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert steps[0].preview is not None
    assert steps[0].preview().shape == (1, 32, 32, 3)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert np.array_equal(views[0].frames, np.stack([np.asarray(frame) for frame in clip]))
    other = generate_views(engine, ViewsRequest("sv4d2", seed=24, steps=2, **SIZE), clip)
    assert not np.array_equal(views[1].frames, other[1].frames)

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        generate_views(engine, request, clip, stop)
    with pytest.raises(UserError, match="makes its clips from a clip"):
        generate(engine, request, clip[0])
    with pytest.raises(UserError, match="load that version"):
        generate_views(engine, ViewsRequest("sv4d2_8views"), clip)


def test_a_lora_is_merged_and_what_of_another_network_s_has_no_place_is_told(
    put: Callable[..., None], caplog: Any
) -> None:
    put("sv4d2", "sv4d2_small", **SV4D2)
    blocks = [f"input_blocks.1.1.{part}.0" for part in ("transformer_blocks", "time_mix_blocks", "motion_blocks")]
    layers, factors = [f"diffusion_model.{block}.attn1.to_out.0" for block in blocks], {}
    kohya = f"lora_unet_{blocks[1]}.attn1.to_out.0".replace(".", "_")
    for layer, name in zip(layers, (layers[0], kohya, layers[2]), strict=True):
        rows, columns = WEIGHTS["sv4d2_small"][f"model.{layer}.weight"].shape
        factors |= {f"{name}.lora_down.weight": torch.ones(2, columns), f"{name}.lora_up.weight": torch.ones(rows, 2)}
    of_svd = {re.sub("time_mix_blocks|motion_blocks", "time_stack", name): value for name, value in factors.items()}
    engine = load_engine("sv4d2", loras={"mine": Path("mine.safetensors"), "svd": Path("svd.safetensors")})
    request = ViewsRequest("sv4d2", frames=3, steps=1, **SIZE)
    base, clip = engine.network.model.state_dict(), request.family.prepare_clip(drawn(3), request)
    for name, tensors, took in (("mine", factors, layers), ("svd", of_svd, layers[:1])):
        save_file(tensors, f"{name}.safetensors", {"sgm.base": name})
        now = merged(engine.network, loras_of(name, engine.loras), "sv4d2").model.state_dict()
        assert [key for key in base if not torch.equal(base[key], now[key])] == [f"{layer}.weight" for layer in took]
    assert "svd.safetensors: 1 layers of sv4d2 take it; it has no place for" in caplog.text
    views = generate_views(engine, ViewsRequest("sv4d2", frames=3, steps=1, lora="mine:0.5", **SIZE), clip)
    assert [lora["name"] for lora in views[1].settings["sgm"]["loras"]] == ["mine"]
    (temporal := dict(of_svd)).pop(f"{layers[0]}.lora_down.weight")
    save_file(temporal, "svd.safetensors")
    with pytest.raises(UserError, match="is a LoRA that fits no layer of sv4d2"):
        generate_views(engine, ViewsRequest("sv4d2", frames=3, lora="svd", **SIZE), clip)


def test_two_processes_and_an_actor_agree(put: Callable[..., None], tmp_path: Path, monkeypatch: Any) -> None:
    put("sv4d2", "sv4d2_small", **SV4D2)
    row = {field.name: getattr(VIEW_VERSIONS["sv4d2"], field.name) for field in dataclasses.fields(Version)}
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib\nfrom sgm import versions\n\nclass Small(versions.Version):\n"
        f"    config_path = pathlib.Path({str(tmp_path / 'sv4d2.yaml')!r})\n\n"
        f"versions.VIEW_VERSIONS['sv4d2'] = Small(**{row!r})\n"
    )  # which the other process begins with
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    request, notes = ViewsRequest("sv4d2", steps=1, **SIZE), set[str]()
    clip = request.family.prepare_clip(drawn(5), request)
    engine = load_engine("sv4d2", device="cpu", dtype="float32", gpus=2)
    two = generate_views(engine, request, clip, lambda at: notes.add(at.note))
    assert (engine.ranks.size, notes) == (2, {""})
    made = pickle.loads(Maker().make(1, pickle.dumps((request, clip, False, None, {"dtype": "float32"}))))
    names = ["input", "view-1", "view-2", "view-3", "view-4"]
    assert list(made) == [*names, "grid", "walk"]
    for name, view in zip(names, two, strict=True):
        assert np.abs(made[name].frames.astype(int) - view.frames).max() <= 1


def test_sv4d_begins_with_the_orbit_of_sv3d() -> None:
    request = ViewsRequest("sv4d", seed=5, steps=7, width=128, height=64)
    first = request.first
    assert isinstance(first, VideoRequest)
    assert (first.version, first.seed, first.steps, first.size, first.frames) == ("sv3d_u", 5, 7, (128, 64), 21)
    assert ViewsRequest("sv4d2").first is None
    orbit = np.arange(21, dtype=np.uint8)[:, None, None, None].repeat(64, 1).repeat(128, 2).repeat(3, 3)
    matrix = request.family.matrix([Image.new("RGB", (128, 64), (99, 99, 99))] * 21, request, orbit)
    shown = ((matrix[0, :, 0, 0, 0] + 1) * 127.5).round().tolist()
    assert shown == [99, 1, 4, 6, 8, 11, 13, 15, 18]  # the orbit's last picture is the input's view
    with pytest.raises(ValueError, match="needs first views"):
        request.family.matrix([], request, None)


def test_sv4d_from_a_folder_of_frames(put: Callable[..., None]) -> None:
    put("sv4d", "sv4d_small", times=3, num_views=4, frames=7)
    put("sv3d_u", "sv3d_p_small", family="elevated orbit")  # as sv3d_u, but for what its network is told
    saved(Path("frames"), drawn(6, background=CLEAR))
    words = ["sample", "frames", "--version", "sv4d", "--width", "64", "--height", "64", "--steps", "1"]
    run = CliRunner().invoke(cli, [*words, "--no-watermark"], catch_exceptions=False)
    assert run.exit_code == 0, run.stderr
    assert "frames has 6 frames: they run back and forth to make 7." in run.stderr
    assert "sv3d_u makes the views of the first frame." in run.stderr
    folder = Path("outputs") / "frames-sv4d-23"
    views = [f"view-{i}.mp4" for i in range(1, 5)]
    assert sorted(path.name for path in folder.iterdir()) == ["grid.mp4", "input.mp4", *views, "walk.mp4"]
    assert read_frames(folder / "view-4.mp4")[0].shape == (7, 64, 64, 3)
    assert not any(is_marked(read_recipe(path)) for path in folder.iterdir())
    Path("sv3d_u.safetensors").unlink()
    status = version_status("sv4d")
    assert status.problem == "It begins with an orbit by sv3d_u, which is missing."
    assert status.command == "sgm download sv3d_u"
    missing = CliRunner().invoke(cli, words)
    assert missing.exit_code == 1
    assert "The weights of sv3d_u are missing" in missing.stderr
