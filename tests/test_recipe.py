"""Recipes: a clip's file holds all that made it; read back it makes the same frames; others' settings are not ours."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sgm import (
    GUIDERS,
    RECIPE_TEXTS,
    SAMPLERS,
    SCHEDULES,
    VERSIONS,
    Field,
    UserError,
    VideoRequest,
    differences,
    generate,
    input_frame,
    is_recipe,
    load_engine,
    read_frames,
    read_recipe,
    read_settings,
    request_of,
    write_video,
)
from sgm.cli.commands import cli
from sgm.weights import quick_hash

SMALL = ["--frames", "2", "--steps", "2", "--height", "64", "--width", "96", "--depth", "0", "--dtype", "float32"]
# What files held before recipes had a mark: all fields, whoever took them.
BEFORE_THE_MARK = {
    **{"version": "svd_tiny", "frames": 14, "height": 192, "width": 320, "steps": 5, "fps": 7, "motion_bucket": 127},
    **{"cond_aug": 0.02, "seed": 4, "sampler": "dpmpp_2m", "guider": "linear", "min_guidance": 1.0},
    **{"max_guidance": 1.0, "decode_chunk": 14, "camera": "pan_left", "elevation": 10.0, "orbit": "same"},
    **{"elevations": [], "azimuths": [], "image_frame_ratio": 0.9, "fit": "crop", "sigma_min": 0.002},
    **{"sigma_max": 80.0, "rho": 7.0, "s_churn": 0.0, "eta": 1.0, "order": 4},
}


def sgm(*args: object):
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A picture and the clip that was made of it."""
    folder = tmp_path_factory.mktemp("made")
    y, x = np.mgrid[0:90, 0:300]
    Image.fromarray(np.stack([x % 256, 2 * y, 255 - y], axis=-1).astype(np.uint8)).save(folder / "photo.png")
    options = ["--seed", 7, "--sampler", "euler_ancestral", "--eta", 0.25, "--crop-x", 0.1, "--cond-aug", 0.1 + 0.2]
    done = sgm("sample", folder / "photo.png", *SMALL, *options, "--out", folder / "clip.mp4")
    assert done.exit_code == 0, done.stderr
    return folder / "photo.png", folder / "clip.mp4"


def test_a_clip_holds_all_that_made_it(made: tuple[Path, Path]) -> None:
    settings = read_recipe(made[1])
    request = request_of(settings)
    assert settings.keys() == {"version", *request.fields(), "sgm"}
    assert (request.seed, request.eta, request.crop_x, request.cond_aug) == (7, 0.25, 0.1, 0.1 + 0.2)
    mark = settings["sgm"]
    assert mark["format"] == 1
    assert (mark["device"], mark["dtype"], mark["weights"]["name"]) == ("cpu", "float32", "svd_tiny.safetensors")
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in (mark["weights"]["sha256"], mark["picture"]))
    assert re.match(r"\d+\.\d+", mark["program"])
    assert re.match(r"\d+\.\d+", mark["torch"])


def test_the_recipe_makes_the_clip_again_and_options_beside_it_override(made: tuple[Path, Path]) -> None:
    picture, clip = made
    again = sgm("sample", picture, "--recipe", clip, "--out", "again.mp4")
    assert again.exit_code == 0, again.stderr
    assert "then," not in again.stderr
    np.testing.assert_array_equal(read_frames("again.mp4")[0], read_frames(clip)[0])
    assert read_recipe("again.mp4") == read_recipe(clip)
    other = sgm("sample", picture, "--recipe", clip, "--seed", 8, "--sampler", "euler_edm", "--out", "other.mp4")
    assert other.exit_code == 0, other.stderr
    request = request_of(read_recipe("other.mp4"))
    assert request == request_of(read_recipe(clip)).replace(seed=8, sampler="euler_edm")


def test_a_yaml_of_it_makes_it_again_too(made: tuple[Path, Path]) -> None:
    picture, clip = made
    printed = sgm("recipe", clip)
    assert printed.exit_code == 0
    Path("clip.yaml").write_text(printed.stdout, encoding="utf-8")
    assert read_recipe("clip.yaml") == read_recipe(clip)
    assert sgm("sample", picture, "--recipe", "clip.yaml", "--out", "again.mp4").exit_code == 0
    np.testing.assert_array_equal(read_frames("again.mp4")[0], read_frames(clip)[0])
    # By hand, with what differs from the version's own values alone.
    Path("own.yaml").write_text("version: svd_tiny\nseed: 9\nazimuths: [1]\n", encoding="utf-8")
    done = sgm("sample", picture, "--recipe", "own.yaml")
    assert (done.exit_code, done.stderr) == (
        2,
        "Error: azimuths does not belong to version 'svd_tiny', but to sv3d_p with orbit list.\n",
    )


def test_command_and_program_that_are_printed_make_it_again(made: tuple[Path, Path]) -> None:
    picture, clip = made
    command = sgm("recipe", clip, "--as", "command").stdout.strip()
    words = command.split()
    assert words[:3] == ["sgm", "sample", "PICTURE"]
    assert sgm("sample", picture, *words[3:], "--out", "by_command.mp4").exit_code == 0
    program = sgm("recipe", clip, "--as", "python").stdout
    Path("program.py").write_text(program.replace("'PICTURE'", repr(str(picture))), encoding="utf-8")
    subprocess.run([sys.executable, "program.py"], check=True, timeout=120)
    for name in ("by_command.mp4", "clip.mp4"):
        np.testing.assert_array_equal(read_frames(name)[0], read_frames(clip)[0])
        assert request_of(read_recipe(name)) == request_of(read_recipe(clip))


def test_without_a_picture_the_clips_own_stands_in(made: tuple[Path, Path]) -> None:
    done = sgm("sample", "--recipe", made[1], "--out", "again.mp4")
    assert done.exit_code == 0, done.stderr
    assert "the first frame of clip.mp4 stands in for it" in done.stderr
    assert "The picture is another one" in done.stderr
    done = sgm("sample")
    assert (done.exit_code, done.stderr.count("Missing argument")) == (2, 1)


def test_of_a_film_the_last_clips_first_frame_stands_in(made: tuple[Path, Path]) -> None:
    settings, frames = read_recipe(made[1]), read_frames(made[1])[0]
    red = np.zeros_like(frames) + np.array([200, 0, 0], np.uint8)
    film = write_video("film.mp4", np.concatenate([red, frames]), 7, settings | {"links": [settings, settings]})
    done = sgm("sample", "--recipe", film, "--out", "again.mp4")
    assert done.exit_code == 0, done.stderr
    assert "the last clip's first frame of film.mp4 stands in for it" in done.stderr
    assert sgm("sample", "--recipe", film, "--frames", "1", "--out", "shorter.mp4").exit_code == 0
    assert read_recipe("shorter.mp4")["sgm"]["picture"] == read_recipe("again.mp4")["sgm"]["picture"]
    assert sgm("sample", "--recipe", made[1], "--out", "wanted.mp4").exit_code == 0
    again, wanted = (read_frames(name)[0].astype(int) for name in ("again.mp4", "wanted.mp4"))
    assert np.abs(again - wanted).mean() < 3  # the film was encoded once more
    orbit = VideoRequest("sv3d_u", frames=2)
    np.testing.assert_array_equal(input_frame(frames, orbit)[0], frames[-1])


def test_the_printed_command_needs_no_quotes_which_each_shell_has_of_its_own() -> None:
    for request in (
        VideoRequest("sv3d_p", orbit="list", azimuths=[17 * i for i in range(1, 22)], elevations=[-5.5] * 21),
        VideoRequest("svd", guider="triangle", period=[1, 0.25], max_guidance=1e-5, min_guidance=0),
    ):
        command = RECIPE_TEXTS["command"]({**request.settings(), "sgm": {"format": 1, "dtype": "float16"}})
        assert not set(command) & set("'\"\\$`&|<>^%!*?()")


def test_a_difference_of_weights_program_or_picture_is_said(made: tuple[Path, Path]) -> None:
    settings = read_recipe(made[1])
    other = json.loads(json.dumps(settings))
    assert differences(settings, other) == []
    other["sgm"]["threads"] = "96"
    assert differences(settings, other) == [f"Threads: {settings['sgm']['threads']} then, 96 now."]
    del other["sgm"]["threads"]
    other["sgm"] |= {"program": "9.9", "device": "cuda", "weights": {"name": "mine", "sha256": "0"}, "picture": "1"}
    said = differences(settings, other)
    assert [sentence.split()[0] for sentence in said] == ["Program", "Device:", "Weights:", "The"]
    other["sgm"] = {"program": "9\x1b[31m\n", "weights": {"name": "\x1b]0;", "sha256": "\x07"}}  # from elsewhere
    assert "9\\x1b[31m\\n then" in differences(other, settings)[0]
    assert "\\x1b]0; (\\x07) then" in differences(other, settings)[1]
    assert differences(BEFORE_THE_MARK, settings) == []  # nothing is known of them


def test_recipes_of_before_the_mark_still_load() -> None:
    assert is_recipe(BEFORE_THE_MARK)
    request = request_of(BEFORE_THE_MARK)
    size = {"width": 320, "height": 192}  # svd_tiny's own then
    assert request == VideoRequest("svd_tiny", steps=5, seed=4, sampler="dpmpp_2m", camera="pan_left", depth=0, **size)
    orbit = request_of({**BEFORE_THE_MARK, "version": "sv3d_p", "height": 576, "width": 576, "sigma_max": 700.0})
    assert (orbit.elevation, orbit.family.orbits) == (10.0, True)


@pytest.mark.parametrize(
    "comment",
    [
        {"prompt": {"3": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20}}}, "workflow": {}},
        {"seed": 5, "steps": 20, "fps": 8, "version": "1.2"},
        {"version": "svd_tiny"},
        {"sgm": "mine", "version": "svd_tiny"},
        {"sgm": {"format": "x"}, "version": "svd_tiny"},
        {"sgm": {"format": True}, "version": "svd_tiny"},
        [1, 2],
        7,
    ],
)
def test_another_tools_settings_are_none_of_ours(comment: Any, tmp_path: Path) -> None:
    assert not is_recipe(comment)
    if isinstance(comment, dict):
        clip = write_video(tmp_path / "other.mp4", np.zeros((2, 32, 32, 3), np.uint8), 7, comment)
        assert read_settings(clip) == comment
        with pytest.raises(UserError, match=r"other\.mp4 holds no settings of ours"):
            read_recipe(clip)


def test_a_newer_programs_recipe_and_wrong_values_are_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    settings = read_recipe(made[1])
    with pytest.raises(UserError, match=r"a newer program's \(format 2; known: 1\): update"):
        request_of({**settings, "sgm": {"format": 2}})
    with pytest.raises(UserError, match="steps must be a whole number from 1 to 1000; got 0"):
        request_of({**settings, "steps": 0})
    with pytest.raises(UserError, match="elevation does not belong to version 'svd_tiny'"):
        request_of({**settings, "elevation": 3})
    for name, content, said in (
        ("missing.yaml", None, "There is no recipe at"),
        ("list.yaml", "- 1\n", "is no recipe: a recipe is a mapping"),
        ("bad.yaml", "a: [", "cannot be read as YAML: while parsing"),
        ("5.yaml", "5", "cannot be read as YAML: it is of another kind."),
        ("bomb.yaml", f"a: &a [1]\nb: &b [{'*a, ' * 99}]\nc: [{'*b, ' * 99}]", "the configured limit of 10000.\n"),
        ("digits.yaml", "version: svd_tiny\nseed: " + "9" * 5000, "value has 5000 digits."),
        ("latin.yaml", b"version: svd_tiny # \xe4", "cannot be read as YAML: it is no text in UTF-8."),
        ("no.mp4", b"\0x", "cannot be read as a video"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        done = sgm("recipe", tmp_path / name)
        assert done.exit_code == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_recipe_is_known_by_its_content(made: tuple[Path, Path], tmp_path: Path) -> None:
    settings = read_recipe(made[1])
    text = RECIPE_TEXTS["yaml"](settings)
    for name, content in {
        "clip.yaml": made[1].read_bytes(),
        "settings.txt": text.encode(),
        "settings": b"\xef\xbb\xbf" + text.encode(),
        "powershell.yaml": text.replace("\n", "\r\n").encode("utf-16"),  # of `sgm recipe clip.mp4 > powershell.yaml`
    }.items():
        (tmp_path / name).write_bytes(content)
        assert read_recipe(tmp_path / name) == settings, name


def test_a_recipe_reads_nothing_of_its_readers_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2")
    read = "${oc.env:A_SECRET}"
    for line in (f"sampler: {read}", f"steps: ${{oc.decode:{read}}}", f"{read}: 1", None):
        text = f"version: svd_tiny\n{line}\n" if line else f"version: {read}\n"
        (tmp_path / "given.yaml").write_text(text, encoding="utf-8")
        done = sgm("recipe", tmp_path / "given.yaml")
        assert done.exit_code == 1
        assert "${oc." in done.stderr
        assert "hunter2" not in done.output


def test_weights_of_any_name_are_written_and_read(made: tuple[Path, Path], tmp_path: Path) -> None:
    settings = read_recipe(made[1])
    names = "a${b.safetensors", "${oc.env:HOME}", "???", "C:\\my weights\\'x\".safetensors", "1e5", "żółw", "- a: #"
    for name in names:
        settings["sgm"]["weights"]["name"] = name
        (tmp_path / "again.yaml").write_text(RECIPE_TEXTS["yaml"](settings), encoding="utf-8")
        assert read_recipe(tmp_path / "again.yaml") == settings


def test_texts_of_a_recipe_of_before_the_mark_are_recipes_too(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "old.mp4", np.zeros((2, 32, 32, 3), np.uint8), 7, BEFORE_THE_MARK)
    (tmp_path / "old.yaml").write_text(sgm("recipe", clip).stdout, encoding="utf-8")
    for path in (clip, tmp_path / "old.yaml"):
        assert request_of(read_recipe(path)) == request_of(BEFORE_THE_MARK)
        assert "--camera pan_left" in sgm("recipe", path, "--as", "command").stdout


@pytest.mark.parametrize(
    "mark",
    [
        {"dtype": [1], "program": {}, "weights": 7},
        {"weights": {"base": [1], "name": [2], "sha256": 3}},
        {"weights": {"base": {"name": {}, "sha256": None}}},
        {"weights": [], "device": None},
    ],
)
def test_a_mark_that_somebody_wrote_by_hand_breaks_nothing(mark: dict[str, Any], made: tuple[Path, Path]) -> None:
    settings = {"version": "svd_tiny", "sgm": {"format": 1, **mark}}
    for text in RECIPE_TEXTS.values():
        assert "svd_tiny" in text(settings)
    for pair in ((settings, read_recipe(made[1])), (read_recipe(made[1]), settings), (settings, settings)):
        assert all(isinstance(sentence, str) for sentence in differences(*pair))


def test_a_clips_recipe_is_its_own(made: tuple[Path, Path]) -> None:
    engine = load_engine("svd_tiny", device="cpu", dtype="float32")
    before = copy.deepcopy(engine.weights)
    request = VideoRequest(frames=1, steps=1, height=32, width=32)
    generate(engine, request, Image.new("RGB", (32, 32))).settings["sgm"]["weights"]["name"] = "another"
    assert engine.weights == before


def test_a_base_is_named_where_it_was_used_and_refused_where_it_is_not(tmp_path: Path) -> None:
    shipped = VERSIONS["svd_tiny"].checkpoint_path
    assert shipped is not None
    state = load_file(shipped)
    whole, network = tmp_path / "whole.safetensors", tmp_path / "network.safetensors"
    save_file(state, whole)
    save_file({name: value for name, value in state.items() if name.startswith("model.diffusion_model.")}, network)
    assert "base" not in load_engine(checkpoint=whole, device="cpu").weights
    for base in (None, whole):
        weights = load_engine(checkpoint=network, base=base, device="cpu").weights
        assert weights == {**quick_hash(network), "base": quick_hash(base or shipped)}
    with pytest.raises(UserError, match=r"whole\.safetensors is a whole model.*leave out the base"):
        load_engine(checkpoint=whole, base=tmp_path / "missing", device="cpu")


def test_the_quick_hash_tells_weights_apart(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 3 << 20, np.uint8)
    path = tmp_path / "weights.safetensors"
    seen = set()
    for at in (None, 0, 1 << 20, len(content) - 1):
        other = content.copy()
        if at is not None:
            other[at] ^= 1
        path.write_bytes(other.tobytes())
        seen.add(quick_hash(path)["sha256"])
    assert len(seen) >= 3
    path.write_bytes(content.tobytes())
    assert quick_hash(path)["sha256"] in seen
    (tmp_path / "folder" / "unet").mkdir(parents=True)
    path.rename(tmp_path / "folder" / "unet" / path.name)
    (tmp_path / "folder" / "notes.txt").write_text("of no matter")
    assert quick_hash(tmp_path / "folder")["name"] == "folder"


def test_a_base_is_in_the_recipe_where_weights_are_laid_over_it_alone(tmp_path: Path) -> None:
    own = VERSIONS["svd_tiny"].checkpoint_path
    assert own
    whole = tmp_path / "whole.safetensors"
    shutil.copy(own, whole)
    assert load_engine("svd_tiny", checkpoint=whole).weights == {**quick_hash(own), "name": whole.name}
    state = {name: value for name, value in load_file(whole).items() if name.startswith("model.diffusion_model.")}
    alone = tmp_path / "alone.safetensors"
    save_file(state, alone)
    assert load_engine("svd_tiny", checkpoint=alone).weights == {**quick_hash(alone), "base": quick_hash(own)}


def adding(base: Any, field: Field, **parameters: Any) -> Any:
    """A sampler's or guider's class with one option more."""

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        self.seen = kwargs.pop(field.name)
        base.__init__(self, *args, **kwargs)

    body = {"options": {**base.options, field.name: field}, "__init__": init, **parameters}
    return type(f"Added{base.__name__}", (base,), body)


@pytest.mark.parametrize(
    ("chooser", "registry", "base"),
    [("sampler", SAMPLERS, "euler_edm"), ("guider", GUIDERS, "linear"), ("schedule", SCHEDULES, "edm")],
)
def test_one_that_is_added_is_on_the_command_line_and_in_the_recipe(
    chooser: str, registry: dict[str, Any], base: str, made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    field = Field("strength_of_mine", float, "Strength", "How strong mine is.", 0, 2, default=0.5)
    monkeypatch.setitem(registry, "mine", adding(registry[base], field))
    shown = " ".join(sgm("sample", "--help").stdout.split())
    assert f"--strength-of-mine <0 to 2> How strong mine is. (Of {chooser} mine.)" in shown
    assert "|mine" in shown
    args = [made[0], *SMALL, f"--{chooser}", "mine", "--strength-of-mine", "1.25", "--out", "mine.mp4"]
    done = sgm("sample", *args)
    assert done.exit_code == 0, done.stderr
    request = request_of(read_recipe("mine.mp4"))
    assert (getattr(request, chooser), request.strength_of_mine) == ("mine", 1.25)
    assert "--strength-of-mine 1.25" in sgm("recipe", "mine.mp4", "--as", "command").stdout
    refused = sgm("sample", made[0], "--strength-of-mine", "1")
    assert f"strength_of_mine does not belong to {chooser} '{base}', but to mine" in refused.stderr
    assert "must be a number from 0 to 2" in sgm("sample", *args[:-4], "--strength-of-mine", "3").stderr
    assert getattr(request, f"build_{chooser}")().seen == 1.25
