"""Sweeps: axes, cells and their order; the command, with the real svd_tiny, small."""

from __future__ import annotations

import csv
import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

import sgm as library
from sgm import (
    Axis,
    Memo,
    UserError,
    VideoRequest,
    cells,
    grid_pages,
    making_order,
    paths,
    prepare_picture,
    read_recipe,
    references_of,
    request_of,
)
from sgm.cli.folder import Pictures, SweepFolder
from sgm.cli.making import Countdown, in_own_thread
from sgm.paths import locked
from sgm.recipe import as_options, made_by
from tests.test_cli import _empty_folder, frames_of, save_picture, sgm  # noqa: F401

SMALL = ["--frames", "2", "--width", "64", "--height", "64", "--depth", "0", "--steps", "1"]  # depth takes longer
BASE = VideoRequest(frames=2)


def axes(*texts: str) -> list[Axis]:
    return [Axis.parse(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("steps=10,25,50", (10, 25, 50)),
        ("seed=1..4", (1, 2, 3, 4)),
        ("steps=1,10..30..10,99", (1, 10, 20, 30, 99)),
        ("seed=3..1", (3, 2, 1)),
        ("s-noise=1..1.01..0.005", (1.0, 1.005, 1.01)),
        ("period=1/0.5,0.25", ((1.0,), (0.5, 0.25))),
        ("version=svd_tiny,svd", ("svd_tiny", "svd")),
    ],
)
def test_axes_as_people_type_them(text: str, values: tuple[Any, ...]) -> None:
    axis = Axis.parse(text)
    assert axis.values == values
    assert Axis.parse(str(axis)) == axis


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps", "must be of the form NAME=VALUE,VALUE"),
        ("stepps=1,2", "stepps is not a setting of a video. Near it: steps"),
        ("steps=", "steps must be a whole number; got ''"),
        ("steps=0,1", "steps must be a whole number from 1 to 1000; got 0"),
        ("seed=0,0", "seed has the value 0 twice"),
        ("sampler=magic", "sampler must be one of euler_edm"),
        ("version=svd_9", "version must be one of svd_tiny"),
        ("steps=1..", "ranges are START..END"),
        ("steps=1..9..-2", "its step must lead from 1 to 9"),
        ("rho=1..5", "say a step"),
        ("sampler=a..b", "ranges are START..END"),
        ("seed=1..2000000000", "more than the 100,000"),
        ("seed=1..1e999999", "more than the 100,000"),  # at once: an int of these digits takes half a minute
        ("cond-aug=0..1..1e-999999", "more than the 100,000"),
        ("seed=" + ",".join(10_000 * ["0..99999"]), "more than the 100,000"),
    ],
)
def test_axes_that_are_none(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("(", "\\(")):
        Axis.parse(text)


@pytest.mark.parametrize(
    ("texts", "options", "said"),
    [
        (["eta=0,1", "sampler=euler_edm"], {}, "The cell eta=0 sampler=euler_edm cannot be made: eta does not belong"),
        (["height=100"], {}, "The cell height=100 cannot be made: height must be a multiple of 32"),
        (["steps=1", "steps=2"], {}, "steps is varied twice"),
        (["steps=1,2"], {"fixed": {"steps": 3}}, "steps is both varied and set"),
        (["seed=1..100", "steps=1..100"], {}, "These are 10,000 clips (100 seed × 100 steps), more than 1,000"),
    ],
)
def test_cells_that_cannot_be_made_are_named(texts: list[str], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        cells(BASE, axes(*texts), **options)
    assert said in str(caught.value)


def test_names_of_loras_stay_as_they_are() -> None:
    axis = Axis("lora", ("v1..2", "x, y:0.5"))
    assert axis.values == ("v1..2:1", "x, y:0.5")
    assert Axis.parse("lora=v1..2,pan").values == ("v1..2:1", "pan:1")
    assert axis.text(axis.values[1]) == "x, y:0.5"
    assert as_options(VideoRequest(lora="x, y:0.5"))[-2:] == ["--lora", "x, y:0.5"]


def test_cells_are_all_combinations_and_take_what_is_set() -> None:
    made = cells(BASE, axes("sampler=euler_ancestral,dpmpp_2s_ancestral", "seed=1..2"), "ab", {"eta": 0.5})
    assert [str(cell) for cell in made[:4]] == [
        "sampler=euler_ancestral seed=1",
        "sampler=euler_ancestral seed=2",
        "sampler=dpmpp_2s_ancestral seed=1",
        "sampler=dpmpp_2s_ancestral seed=2",
    ]
    assert [cell.picture for cell in made] == list("aaaabbbb")
    assert {(cell.request.frames, cell.request.eta) for cell in made} == {(2, 0.5)}
    versions = cells(VideoRequest(), axes("version=svd_tiny,svd"))
    assert [cell.request for cell in versions] == [VideoRequest(), VideoRequest("svd")]


def test_references_are_shared_and_made_first() -> None:
    made = cells(BASE, axes("steps=1,2", "seed=1..2"))
    compared = references_of(made, {"steps": 2})
    assert [compared[cell] for cell in made] == [made[2], made[3], made[2], made[3]]
    others = references_of(made, {"steps": 9})
    assert {cell.request.seed: str(others[cell]) for cell in made} == {1: "steps=9 seed=1", 2: "steps=9 seed=2"}
    order = making_order(made, others)
    assert [str(cell) for cell in order[:2]] == ["steps=9 seed=1", "steps=9 seed=2"]
    with pytest.raises(UserError, match="The reference of the cell steps=1 seed=1 cannot be made"):
        references_of(made, {"elevation": 3})
    with pytest.raises(UserError, match="another size or length"):
        references_of(made, {"frames": 3})


def test_the_order_keeps_the_model_the_picture_and_its_embeddings() -> None:
    made = cells(VideoRequest(), axes("steps=1,2", "version=svd_tiny,svd", "seed=1..3"), "ab")
    order = [(cell.request.version, cell.picture, cell.request.seed) for cell in making_order(made)]
    assert order == [key for key in itertools.product(("svd_tiny", "svd"), "ab", (1, 2, 3)) for _ in range(2)]


@pytest.mark.parametrize(
    ("texts", "pictures", "shapes"),
    [
        (["steps=1..3", "seed=1..4"], 1, [(3, 4)]),
        (["steps=1..3", "sampler=euler_edm,dpmpp_2m", "seed=1..4"], 1, [(6, 4)]),
        (["steps=1..2", "fps=1..4", "seed=1..4"], 1, [(4, 4), (4, 4)]),  # one page for each of the steps
        (["seed=1..7"], 2, [(2, 4), (2, 3)]),
        (["seed=1..5"], 1, [(1, 5)]),
        (["seed=1..7"], 1, [(3, 3)]),
        (["seed=1..40"], 1, [(6, 6), (1, 6)]),
    ],
)
def test_pages_hold_every_cell_once_beside_its_labels(texts: list[str], pictures: int, shapes: list[Any]) -> None:
    names = [f"{number}.png" for number in range(pictures)]
    varied = axes(*texts)
    made = cells(BASE, varied, names)
    pages = grid_pages(made, varied, names)
    assert [(len(page.cells), max(map(len, page.cells))) for page in pages] == shapes
    shown = []
    for page in pages:
        for i, row in enumerate(page.cells):
            for j, cell in enumerate(row):
                if cell is None:
                    continue
                shown.append(cell)
                label = page.captions[i][j] if page.captions else f"{page.rows[i]}\n{page.columns[j]}"
                expected = [cell.picture] * (pictures > 1) + [axis.label(cell.values[axis.name]) for axis in varied]
                assert label.strip().split("\n") == expected
    assert set(shown) == set(made)
    assert len(shown) == len(made)


def test_the_time_left_follows_what_clips_took() -> None:
    countdown = Countdown(100.0)
    assert countdown.left() == 100
    countdown.finish(20.0, 40.0)  # twice as slow
    assert countdown.left() == pytest.approx(160)
    assert countdown.left(done=10.0, since=20.0) == pytest.approx(140)
    countdown.finish(80.0, None)
    assert (countdown.left(), countdown.share()) == (0, 1)


def test_a_memo_changes_no_bit_and_embeds_once() -> None:
    engine, picture = library.load_engine(), library.open_picture(save_picture(Path("photo.png")))
    request, memo = VideoRequest(frames=2, width=64, height=64, steps=1), Memo(engine)
    calls: list[int] = []
    engine.conditioner.embedders[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for other in (request, request.replace(steps=2), request.replace(seed=1), request.replace(cond_aug=0.1)):
        plain = library.generate(engine, other, picture).frames
        calls.clear()
        np.testing.assert_array_equal(library.generate(engine, other, picture, memo=memo).frames, plain)
        assert len(calls) == (other == request)
    with pytest.raises(ValueError, match="another engine"):
        library.generate(engine, request, picture, memo=Memo(object()))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_sweep_makes_what_sample_makes_and_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, hue in (("a", 0), ("b", 200)):
        save_picture(Path(f"{name}.png"), hue)
    command = ["sweep", "a.png", "b.png", *SMALL[:-2], "--vary", "steps=1,2", "--out", "out", "--reference", "steps=3"]
    planned = sgm(*command, "--dry-run")
    assert planned.exit_code == 0
    assert planned.stdout.splitlines()[:2] == ["picture  a.png, b.png", "steps    1, 2"]
    assert planned.stdout.splitlines()[2].startswith("6 clips, 2 of them references; 12 evaluations of the network, ")
    assert not Path("out").exists()

    done = sgm(*command)
    assert done.exit_code == 0, done.stderr
    names = [f"{picture}_steps={steps}.mp4" for picture in "ab" for steps in (1, 2)]
    written = [f"out/clips/reference_{picture}_steps=3.mp4" for picture in "ab"]
    written = [
        written[0],
        *(f"out/clips/{name}" for name in names[:2]),
        written[1],
        *(f"out/clips/{n}" for n in names[2:]),
    ]
    assert [Path(line) for line in done.stdout.splitlines()] == [
        *map(Path, written),
        *(Path("out", name) for name in ("grid.mp4", "grid.png", "sweep.csv")),
    ]
    rows = rows_of(Path("out"))
    assert [row["file"] for row in rows] == [f"clips/{name}" for name in names]
    assert [(row["picture"], row["steps"], row["evaluations"], row["error"]) for row in rows[1:3]] == [
        ("a.png", "2", "2", ""),
        ("b.png", "1", "1", ""),
    ]
    assert all(float(row["seconds"]) > 0 and float(row["frame0"]) > 5 for row in rows)
    two, three = (frames_of(f"out/clips/{name}.mp4").astype(float) for name in ("a_steps=2", "reference_a_steps=3"))
    of_frames = 10 * np.log10(255**2 / np.square(two - three).mean(axis=(1, 2, 3)))
    assert float(rows[1]["reference_psnr"]) == pytest.approx(of_frames.mean(), abs=1e-3)
    assert len(frames_of("out/grid.mp4")) == 2
    alone = sgm("sample", "b.png", *SMALL, "--steps", "2", "--no-watermark", "--out", "alone.mp4")
    assert alone.exit_code == 0
    np.testing.assert_array_equal(frames_of("out/clips/b_steps=2.mp4"), frames_of("alone.mp4"))

    # Nothing is made again but what is cut short, missing or under another's name, which stays.
    clips = [Path("out/clips", name) for name in names]
    whole, kept = clips[0].read_bytes(), clips[3].stat().st_mtime_ns
    clips[0].write_bytes(whole[: len(whole) * 2 // 3])
    clips[1].unlink()
    clips[2].write_bytes(b"mine")
    old = [Path("out", name) for name in ("grid-2.mp4", "grid-2.png", "grid-3.png")]  # of more pictures
    for path in old:
        path.touch()
    with FileLock(Path("out", ".sweep.lock")):
        busy = sgm(*command)
    assert (busy.exit_code, busy.stderr.splitlines()[-1]) == (
        1,
        "Error: Another sgm sweep is at work in out: wait for it, or name another folder with --out.",
    )
    clips[3].rename("made meanwhile.mp4")

    @contextmanager
    def after_another(*args: Any) -> Iterator[None]:
        Path("made meanwhile.mp4").rename(clips[3])
        with locked(*args):
            yield

    with monkeypatch.context() as patched:
        patched.setattr("sgm.cli.sweep.locked", after_another)
        again = sgm(*command)
    assert again.exit_code == 0
    assert not any(map(Path.exists, old))
    assert "6 clips, 2 of them references, 2 there already; 6 evaluations" in again.stderr
    assert (clips[0].read_bytes(), clips[2].read_bytes(), clips[3].stat().st_mtime_ns) == (whole, b"mine", kept)
    assert [row["file"] for row in rows_of(Path("out"))][2] == "clips/b_steps=1-2.mp4"
    assert rows_of(Path("out"))[3] == rows[3]

    save_picture(Path("b.png"), hue=90)
    planned = sgm(*command, "--dry-run", "--dtype", "float16")
    assert "2 of them references, 3 there already" in planned.stdout
    assert "then, float16 now.\nClips that are there stay as they are: delete them" in planned.stdout
    other = sgm("sweep", "a.png", *SMALL, "--vary", "seed=1..2", "--out", "out")
    assert other.exit_code == 1
    assert "out holds another sweep" in other.stderr
    Path("out/sweep.csv").write_text("picture," + "x" * 200_000)
    damaged = sgm(*command)
    assert (damaged.exit_code, "sweep.csv, which is damaged" in damaged.stderr) == (1, True)


def test_a_sweep_ends_at_a_last_picture_and_knows_it_when_it_goes_on() -> None:
    """A last picture that is the first one makes a loop, which is there already, too."""
    for name, hue in (("a", 0), ("b", 200)):
        save_picture(Path(f"{name}.png"), hue)
    command = ["sweep", "a.png", "b.png", *SMALL, "--last", "b.png", "--vary", "ends=last,loop", "--out", "out"]
    done = sgm(*command)
    assert done.exit_code == 0, done.stderr
    assert "b.png: the last picture is the same one, so the video is a loop." in done.stderr
    clips = {name: read_recipe(Path("out/clips", f"{name}.mp4")) for name in ("a_ends=last", "a_ends=loop")}
    request = VideoRequest(frames=2, width=64, height=64, steps=1, depth=0, sampler="bounded", ends="last")
    assert request_of(clips["a_ends=last"]) == request
    shown = prepare_picture(library.open_picture(Path("b.png")), request)
    assert [made_by(recipe).get("last") for recipe in clips.values()] == [library.hash_of(shown), None]
    assert "4 clips, all there already." in sgm(*command, "--dry-run").stdout
    save_picture(Path("c.png"), hue=90)
    other = sgm(*command, "--last", "c.png", "--dry-run")
    assert "4 clips, 2 there already" in other.stdout  # the loops
    assert "c.png, the last picture: Cropped" in other.stderr


@pytest.mark.parametrize(
    ("failing", "error", "code", "said", "made"),
    [
        (
            "generate",
            KeyboardInterrupt(),
            130,
            "Stopped after 2 of 4 clips. What is made stays in out, and the same",
            2,
        ),
        ("write_video", OSError(errno.ENOSPC, "No space left on device", "x.mp4"), 1, "What is made stays in out", 2),
        ("generate", "gone", 1, "2 of 4 clips failed; the same command tries them again.", 2),
    ],
)
def test_what_is_made_stays(
    failing: str, error: Any, code: int, said: str, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        save_picture(Path(f"{name}.png"))
    real: Callable[..., Any] = getattr(library, failing)
    count = itertools.count(1)

    def third(*args: Any, **options: Any) -> Any:
        if next(count) == 3 and isinstance(error, BaseException):
            raise error
        if error == "gone":
            Path("b.png").unlink(missing_ok=True)
        return real(*args, **options)

    def stop(*args: Any) -> None:
        raise error

    monkeypatch.setattr(f"sgm.{failing}", third, raising=False)
    command = "sweep", "a.png", "b.png", *SMALL, "--vary", "seed=1..2", "--out", "out"
    done = sgm(*command)
    assert done.exit_code == code
    assert said in done.stderr.splitlines()[-1]
    assert len(list(Path("out/clips").iterdir())) == made
    assert [bool(row["file"]) for row in rows_of(Path("out"))] == ([True, True] + [False] * 2 * (error == "gone"))
    if error == "gone":
        assert done.stderr.count("b.png does not exist") == 1  # said once for all of its cells
        assert Path("out/grid.mp4").exists()
    if code == 130:  # a second stop, while what is there is scored once more, loses no row of the table
        seconds = [row["seconds"] for row in rows_of(Path("out"))]
        monkeypatch.setattr("sgm.score_clip", stop, raising=False)
        assert sgm(*command).exit_code == 130
        assert [row["seconds"] for row in rows_of(Path("out"))] == seconds


def test_a_table_that_another_program_holds_ends_no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Excel does on Windows, while somebody looks at it: the next clip's table has all rows."""
    save_picture(Path("photo.png"))
    real, tries = os.replace, itertools.count()

    def replace(source: Path, target: Path) -> None:
        if target.name == "sweep.csv" and next(tries) < 2:
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    done = sgm("sweep", "photo.png", *SMALL, "--vary", "seed=1..2", "--out", "out")
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("sweep.csv cannot be used (Permission denied): close it elsewhere") == 1
    assert all(float(row["frame0"]) > 5 for row in rows_of(Path("out")))


def test_what_a_virus_scanner_holds_gets_its_name_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, just after it has been written: a clip that took an hour is not lost for that."""
    real, tries = os.replace, itertools.count()

    def replace(source: Path, target: Path) -> None:
        if next(tries) < 2:
            raise PermissionError(errno.EACCES, "Access is denied", str(source))
        real(source, target)

    monkeypatch.setattr(paths, "_WAITS", (0, 0))
    monkeypatch.setattr(os, "replace", replace)
    with paths.replacing(tmp_path / "clip.mp4") as temporary:
        temporary.write_bytes(b"clip")
    assert [path.name for path in tmp_path.glob("*.mp4")] == ["clip.mp4"]


def test_pictures_whose_names_some_systems_take_for_one() -> None:
    """On Windows and macOS a clip would be written over another, as Lake over lake."""
    files = [Path("lake.png"), Path("Lake.jpg"), Path("se\u0301e.png"), Path("S\xe9e.png"), Path("lake-2.png")]
    folder = SweepFolder(Path("out"), axes("seed=1"), files, Pictures("u2net"))
    places = [folder.find(cell)[0].name for cell in cells(BASE, axes("seed=1"), files)]
    assert places == [f"{stem}_seed=1.mp4" for stem in ("lake", "Lake-2", "se\u0301e", "S\xe9e-2", "lake-2-2")]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--vary", "stepps=1,2"], "stepps is not a setting of a video. Near it: steps."),
        (["--vary", "steps=0,2"], "steps must be a whole number from 1 to 1000; got 0."),
        (["--vary", "eta=0,1"], "The cell eta=0 cannot be made: eta does not belong to sampler 'euler_edm'"),
        (["--vary", "seed=1..10000"], "These are 10,000 clips (10,000 seed), more than 1,000: vary less, or say --max"),
        (["--vary", "steps=1,2", "--steps", "3"], "steps is both varied and set"),
        ([], "Nothing varies"),
        (["--vary", "seed=1,2", "--reference", "steps=1,2"], "--reference steps has several values"),
        (["--vary", "version=svd_tiny,svd", "--checkpoint", "x"], "--checkpoint is one model's"),
        (["photo.png", "--vary", "seed=1,2"], "photo.png is given twice"),
        (["none.png", "--vary", "seed=1,2"], "There is no picture at none.png"),
        (["--vary", "seed=1,2", "--last", "none.png"], "none.png"),
        (["--vary", "seed=1,2", "--last", "photo.png", "--loop"], "give one of the two"),
        (
            ["--vary", "ends=loop", "--last", "photo.png"],
            "None of these clips ends at a last picture: leave out --last",
        ),
        (["--vary", "ends=loop,last"], "give it with --last"),
        (["--vary", "sampler=heun_edm,bounded", "--last", "photo.png"], "ends does not belong to sampler 'heun_edm'"),
    ],
)
def test_what_cannot_be_swept_is_one_sentence(args: list[str], said: str) -> None:
    save_picture(Path("photo.png"))
    done = sgm("sweep", "photo.png", *args)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["photo.png"]


def test_a_recipe_brings_its_own_picture_where_the_page_kept_it(tmp_path: Path) -> None:
    save_picture(Path("input.png"))
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    library.write_video(Path("clip.mp4"), frames, 7, library.VideoRequest("svd_tiny", seed=3).settings())
    command = ("sweep", "--recipe", "clip.mp4", "--vary", "steps=1,2", "--dry-run")
    lone = sgm(*command)
    assert (lone.exit_code, lone.stderr) == (
        2,
        "Error: clip.mp4 has no picture beside it: give pictures, as in sgm sweep photo.jpg …\n",
    )
    Path("job.json").write_text("{}")  # as in a folder of the page's
    assert "2 clips; 3 evaluations" in sgm(*command).stdout
    assert "1 clip; 1 evaluation of" in sgm(*command[:3], "--vary", "steps=1", "--dry-run").stdout
    assert "Missing argument 'PICTURE'" in sgm("sweep", "--vary", "steps=1,2").stderr


def test_a_sweep_of_other_pictures_is_not_lost() -> None:
    for name in ("photo.png", "other.png"):
        save_picture(Path(name))
    Path("sweep.csv").write_text(
        "picture,seed,file,seconds,evaluations,error\nphoto.png,1,clips/photo_seed=1.mp4,2,2,\n"
    )
    done = sgm("sweep", "other.png", *SMALL, "--vary", "seed=1,2", "--out", ".")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "holds a sweep of photo.png, as sweep.csv says" in done.stderr
    assert "photo.png" in Path("sweep.csv").read_text()


def test_a_grid_that_no_sweep_made_is_not_lost() -> None:
    save_picture(Path("photo.png"))
    Path("grid.png").write_bytes(b"mine")
    done = sgm("sweep", "photo.png", *SMALL, "--vary", "seed=1,2", "--out", ".")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "grid.png is there, but no sweep.csv beside it" in done.stderr


def test_scores_are_computed_by_one_thread_which_ends() -> None:
    """With more OpenMP threads than cores, the network's sleep at each layer's end: a clip takes 1.1 times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        thread, threads = in_own_thread(lambda: (threading.current_thread(), torch.get_num_threads())).result()
        thread.join(10)
        assert (thread.is_alive(), threads, torch.get_num_threads()) == (False, 1, 3)
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
