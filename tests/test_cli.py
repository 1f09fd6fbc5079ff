"""The command line, as a person or a script meets it. Videos come from the real svd_tiny, with few frames and steps."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sgm import (
    CAMERA_MOVES,
    GUIDERS,
    SAMPLERS,
    SCHEDULES,
    VERSIONS,
    Clip,
    UserError,
    VideoRequest,
    __version__,
    read_settings,
)
from sgm.amounts import duration
from sgm.cli.commands import cli
from sgm.config import instantiate_from_config, load_config
from sgm.paths import write_new
from sgm.versions import bundle

SMALL = ["--frames", "2", "--steps", "1", "--width", "96", "--height", "96", "--depth", "0"]
TRAINING = bundle() / "configs" / "training" / "svd_finetune.yaml"


def sgm(*args: object):
    """Run a command in this process; `.exit_code`, `.stdout` and `.stderr` tell what it did."""
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


def save_picture(path: Path, hue: int = 0) -> Path:
    y, x = np.mgrid[0:90, 0:200]
    pixels = np.stack([x, 2 * y, np.full_like(x, hue)], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def frames_of(video: str | Path) -> np.ndarray:
    with av.open(str(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return save_picture(tmp_path / "photo.png")


def test_help_answers_at_once() -> None:
    """Without what takes a second or more to import."""
    command = [sys.executable, "-X", "importtime", "-m", "sgm.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(
        name in done.stdout for name in ("sample", "score", "repeat", "models", "download", "convert", "app", "train")
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert imported & {"typer", "numpy", "torch", "lightning", "streamlit", "omegaconf", "PIL", "av"} == {"typer"}


@pytest.mark.parametrize("args", [["--version"], ["--version", "sample"]])
def test_says_its_version(args: list[str]) -> None:
    done = sgm(*args)
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"sgm-video {__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "Usage"),
        (["nonsense"], "nonsense"),
        (["sample"], "Missing argument"),
        (["sample", "PICTURE", "--frames", "many"], "--frames"),
        (["sample", "PICTURE", "--frames", "0"], "frames"),
        (["sample", "PICTURE", "--version", "svd_huge"], "svd_huge"),
        (["sample", "PICTURE", "--height", "100"], "100"),
        (["sample", "PICTURE", "--sampler", "magic"], "euler_edm"),
        (["sample", "PICTURE", "--guider", "magic"], "triangle"),
        (["sample", "PICTURE", "--fit", "stretch"], "crop"),
        (["sample", "PICTURE", "--seed", "-1"], "seed"),
        (["sample", "PICTURE", "--out", "clip.avi"], ".mp4"),
        (["sample", "FOLDER", "--out", "clip.mp4"], "folder"),
        (["sample", "."], "holds no pictures"),
        (["sample", "PICTURE", "--recursive"], "--recursive is for a folder"),
        (["sample", "PICTURE", "--dtype", "int8"], "--dtype"),
        (["sample", "PICTURE", "--version", "sv3d_p", "--orbit", "spiral"], "dynamic"),
        (["sample", "PICTURE", "--elevation", "60"], "elevation does not belong to version 'svd_tiny', but to sv3d_p."),
        (["sample", "PICTURE", "--eta", "1"], "but to euler_ancestral, dpm_2_ancestral, dpmpp_"),
        (["sample", "PICTURE", "--turntable"], "needs an orbit"),
        (["sample", "PICTURE", "--smooth", "3"], "smooth must be one of 1, 2, 4; got 3."),
        (["sample", "PICTURE", "--smooth", "2", "--frames", "1"], "1 frame cannot be made smoother"),
        (["sample", "PICTURE", "--smooth", "1", "--slow-motion"], "--slow-motion needs frames to go in between"),
        (["sample", "FOLDER", "--smooth", "2", "--version", "sv4d2"], "sv4d2 makes views of a clip"),
        (["sample", "PICTURE", "--orbit-plot", "orbit.png"], "needs an SV3D version"),
        (["sample", "PICTURE", "--steps"], "'--steps' requires an argument"),
        (["sample", "PICTURE", "--steps=x"], "steps must be a whole number; got 'x'"),
        (["sample", "PICTURE", "--stepps", "4"], "--stepps"),
        (["sample", "--recipe", "PICTURE"], "holds no settings of ours"),
        (["sample", ""], "An empty path is given"),
        (["sample", "PICTURE", "--out="], "An empty path is given"),
        (["sample", "PICTURE", "--version", ""], "version must be one of svd_tiny"),
        (["sample", "PICTURE", "--device", "banana"], "Device 'banana' cannot be used"),
        (["sample", "PICTURE", "--device", "cuda:77"], "here are:"),
        (["convert", "PICTURE", ""], "An empty path is given"),
        (["convert", "PICTURE", "new", "--to", "gguf"], "diffusers"),
        (["download", "svd", "--to", " "], "An empty path is given"),
        (["score", ""], "An empty path is given"),
        (["score", "clip.mp4", "--csv="], "An empty path is given"),
        (["repeat", ""], "An empty path is given"),
        (["recipe", ""], "An empty path is given"),
        (["recipe", "PICTURE", "--as", "json"], "--as"),
        (["app", "--port", "0"], "--port"),
        (["train", "missing.yaml"], "missing.yaml"),
        (["train", "PICTURE", "nonsense"], "key.subkey=value"),
        (["train", "TRAINING", "data.picturs=X"], "did you mean data.pictures?"),
        (["train", ""], "An empty path is given"),
    ],
)
def test_bad_usage_is_2_and_says_why(args: list[str], said: str, picture: Path) -> None:
    places = {"PICTURE": picture, "FOLDER": picture.parent, "TRAINING": TRAINING}
    done = sgm(*(places.get(arg, arg) for arg in args))
    assert done.exit_code == 2
    assert said in done.stderr + (done.stdout if not args else "")
    assert "Traceback" not in done.output
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.png", None, "does not exist"),
        ("empty.png", b"", "is empty"),
        ("note.png", b"no picture at all", "not a picture"),
    ],
)
def test_a_picture_that_cannot_be_read_is_1_and_one_sentence(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = sgm("sample", tmp_path / name)
    assert done.exit_code == 1
    assert name in done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_missing_weights_are_1_and_one_sentence(picture: Path, tmp_path: Path) -> None:
    done = sgm("sample", picture, "--checkpoint", tmp_path / "none.safetensors")
    assert done.exit_code == 1
    assert "none.safetensors" in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_place_that_cannot_be_written_is_told_before_the_work(picture: Path) -> None:
    done = sgm("sample", picture, "--out", picture / "inside")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: Nothing can be written")
    assert done.stderr.count("\n") == 1


def test_models_lists_versions_what_is_installed_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "svd_xt.safetensors").touch()
    monkeypatch.setenv("SGM_CHECKPOINTS", str(tmp_path / "weights"))
    done = sgm("models")
    assert done.exit_code == 0
    rows = {line.split()[0]: line for line in reversed(done.stdout.splitlines()) if line.strip()}
    assert set(VERSIONS) <= set(rows)
    assert f"on disk  {tmp_path / 'weights' / 'svd_xt.safetensors'}, 0.0 MB" in rows["svd_xt"]
    assert "svd_xt.safetensors is empty; get the file again." in done.stdout
    assert "ready" in rows["svd_tiny"]
    assert rows["samplers:"].split()[1:] == ", ".join(SAMPLERS).split()
    assert rows["schedules:"].split()[1:] == ", ".join(SCHEDULES).split()
    assert rows["guiders:"].split()[1:] == ", ".join(GUIDERS).split()
    assert rows["cameras:"].split()[1:] == ", ".join(CAMERA_MOVES).split()
    for version in VERSIONS.values():
        missing = version.checkpoint_path is None
        assert (f"missing  sgm download {version.name}" in rows[version.name]) == missing
        assert missing <= (f"https://huggingface.co/{version.repo} (" in done.stdout)


def test_sample_writes_what_was_asked_and_never_over_a_file(picture: Path) -> None:
    first = sgm("sample", picture, *SMALL, "--fps", "12", "--seed", "5")
    assert first.exit_code == 0, first.stderr
    path = Path("outputs") / "photo-svd_tiny-5.mp4"
    assert first.stdout == f"{path}\n"
    assert "200×90" in first.stderr
    settings = read_settings(path)
    assert settings is not None
    asked = {"version": "svd_tiny", "frames": 2, "steps": 1, "fps": 12, "seed": 5}
    assert asked.items() <= settings.items()
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].average_rate == 12

    again = sgm("sample", picture, *SMALL, "--fps", "12", "--seed", "5")
    assert again.stdout == f"{Path('outputs') / 'photo-svd_tiny-5-2.mp4'}\n"
    one, two = frames_of(path), frames_of(again.stdout.strip())
    assert one.shape == (2, 96, 96, 3)
    np.testing.assert_array_equal(one, two)

    Path("clip.mp4").write_bytes(b"mine")
    named = sgm("sample", picture, *SMALL, "--seed", "6", "--out", "clip.mp4")
    assert named.stdout == "clip-2.mp4\n"
    assert Path("clip.mp4").read_bytes() == b"mine"
    assert not np.array_equal(frames_of("clip-2.mp4"), one)


def test_a_smoother_clip_holds_the_model_s_frames_and_its_recipe_says_so(picture: Path) -> None:
    small = [*SMALL, "--fps", "5"]
    done = sgm("sample", picture, *small, "--smooth", "4", "--out", "four.mp4")
    assert done.exit_code == 0, done.stderr
    with av.open("four.mp4") as video:
        assert (video.streams.video[0].frames, video.streams.video[0].average_rate) == (5, 20)
    settings = read_settings("four.mp4") or {}
    assert {"fps": 5, "frames": 2, "smooth": 4, "slow_motion": False}.items() <= settings.items()
    assert sgm("repeat", "four.mp4", "--picture", picture).stdout == "identical\n"
    assert "--smooth 4" in sgm("recipe", "four.mp4", "--as", "command").stdout
    slower = sgm("sample", picture, "--recipe", "four.mp4", "--slow-motion", "--out", "slow.mp4")
    assert slower.exit_code == 0, slower.stderr
    with av.open("slow.mp4") as video:
        assert (video.streams.video[0].frames, video.streams.video[0].average_rate) == (5, 5)
    assert "--smooth 4 --slow-motion" in sgm("recipe", "slow.mp4", "--as", "command").stdout
    program = sgm("recipe", "slow.mp4", "--as", "python").stdout.replace("PICTURE", picture.as_posix())
    exec(program, {})
    assert np.array_equal(frames_of("clip.mp4"), frames_of("slow.mp4"))
    assert "smooth" not in (
        read_settings(sgm("sample", picture, "--recipe", "slow.mp4", "--smooth", "1").stdout.strip()) or {}
    )


def test_a_name_as_long_as_the_system_takes(tmp_path: Path) -> None:
    picture = save_picture(tmp_path / f"{'猫' * 80}.png")
    done = sgm("sample", picture, *SMALL, "--height", "64", "--width", "64")
    assert done.exit_code == 0, done.stderr
    (written,) = Path("outputs").iterdir()
    assert written.name == f"{'猫' * 66}-svd_tiny-23.mp4"
    assert done.stdout == f"{written}\n"
    for command in (
        ["sample", picture, *SMALL, "--out", f"{'x' * 300}.mp4"],
        ["sample", "x" * 300],
        ["recipe", "x" * 300],
    ):
        done = sgm(*command)
        assert done.exit_code in (1, 2)
        assert done.stderr.splitlines()[-1].startswith("Error: ")


def test_those_who_write_one_name_at_once_write_over_nothing(tmp_path: Path) -> None:
    path, ready = tmp_path / "new" / "clip.mp4", threading.Barrier(8)

    def one(i: int) -> Path:
        ready.wait()
        return write_new(path, lambda name: name.write_text(str(i)))

    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(one, range(8)))
    assert [name.read_text() for name in written] == [str(i) for i in range(8)]
    assert {name.name for name in written} == {"clip.mp4", *(f"clip-{n}.mp4" for n in range(2, 9))}
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(name: Path, error: BaseException = error) -> None:
            name.write_text("half")
            raise error

        with pytest.raises((UserError, KeyboardInterrupt)) as caught:
            write_new(tmp_path / "half.mp4", fail)
        assert "No space left" in str(caught.value) or caught.type is KeyboardInterrupt
        assert not list(tmp_path.glob("half*"))


def test_a_folder_is_a_batch_whose_results_do_not_depend_on_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    save_picture(folder / "a.png", hue=250)
    save_picture(folder / "b.jpg", hue=90)
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:900])
    last = save_picture(folder / "c.png", hue=90)
    (folder / "notes.txt").write_text("not a picture, and not meant as one")

    batch = sgm("sample", folder, *SMALL, "--out", "batch")
    assert batch.exit_code == 1
    written = [Path("batch") / f"{name}-svd_tiny-23.mp4" for name in "ac"]
    assert batch.stdout.splitlines() == [str(path) for path in written]
    assert "b.jpg" in batch.stderr
    assert "1 of 3 pictures failed" in batch.stderr
    assert "notes.txt" not in batch.stderr

    alone = sgm("sample", last, *SMALL, "--out", "alone.mp4")
    assert alone.exit_code == 0
    np.testing.assert_array_equal(frames_of(written[1]), frames_of("alone.mp4"))


def test_a_folder_that_is_run_again_goes_on_and_keeps_its_shape(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "hills" / "out").mkdir(parents=True)
    pictures = [folder / "a.png", folder / "a.bmp", folder / "hills" / "a.png"]
    for hue, path in enumerate(pictures):
        save_picture(path, hue=80 * hue)
    out = folder / "hills" / "out"  # among the pictures, and not taken for one of them
    save_picture(out / "input.png")
    command = ["sample", folder, *SMALL, "--height", "64", "--width", "64", "--out", out, "--recursive"]

    first = sgm(*command, "--skip-existing")
    assert first.exit_code == 0, first.stderr
    made = [out / "a-svd_tiny-23.mp4", out / "a-svd_tiny-23-2.mp4", out / "hills" / "a-svd_tiny-23.mp4"]
    assert first.stdout.splitlines() == list(map(str, made))
    made[0].write_bytes(
        made[0].read_bytes()[: made[0].stat().st_size // 2]
    )  # half-written: it does not count, nor is it overwritten
    save_picture(pictures[2], hue=250)  # another picture of the name
    again = sgm(*command, "--skip-existing")
    assert "1 of 3 videos is there already." in again.stderr
    fresh = [out / "a-svd_tiny-23-3.mp4", out / "hills" / "a-svd_tiny-23-2.mp4"]
    assert again.stdout.splitlines() == list(map(str, fresh))
    done = sgm(*command, "--skip-existing")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "3 of 3 videos are there already." in done.stderr


@pytest.mark.parametrize(
    ("patched", "args", "said"),
    [
        ("", ["--version", "sv3d_u"], "The weights of sv3d_u are missing"),
        ("", ["--checkpoint", "none.safetensors"], "none.safetensors"),
        ("", ["--out", f"{'x' * 245}.mp4"], "is too long: give one of at most"),
        ("", ["--version", "sv3d_u", "--orbit-plot", f"{'x' * 300}.png"], "File name too long"),
        ("shutil.disk_usage", [], "but has 0.0 MB free"),
        ("sgm.video_encoder", [], "no encoder"),
    ],
)
def test_what_can_be_known_is_told_before_a_picture_is_opened(
    patched: str, args: list[str], said: str, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UserError("There is no encoder.")

    if patched:
        full = SimpleNamespace(free=1000)
        monkeypatch.setattr(patched, refuse if "encoder" in patched else lambda _: full, raising=False)
    done = sgm("sample", picture, *args)
    assert done.exit_code == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1  # nothing of the picture
    assert not list(Path().iterdir())


def test_one_failure_ends_no_batch_but_a_full_disk_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    for name in "abcdef":
        save_picture(tmp_path / "pictures" / f"{name}.png")
    failures = iter(
        [None, UserError("This needs more memory."), RuntimeError("odd"), None, OSError(28, "No space left", "e.mp4")]
    )

    def generate(engine: object, request: VideoRequest, *_: object, **__: object) -> Clip:
        if failure := next(failures):
            raise failure
        frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
        return Clip(frames, 7, request.settings())

    monkeypatch.setattr("sgm.generate", generate, raising=False)
    done = sgm("sample", tmp_path / "pictures")
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [str(Path("outputs") / f"{name}-svd_tiny-23.mp4") for name in "ad"]
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert errors == [
        "Error: b.png: This needs more memory.",
        "Error: c.png: RuntimeError: odd",
        "Error: e.mp4: No space left.",
    ]
    assert "f.png" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to one process")
@pytest.mark.parametrize("when", ["importing torch", "sampling"])
def test_ctrl_c_is_130_and_leaves_nothing(picture: Path, when: str) -> None:
    command = [sys.executable, "-m", "sgm.cli", "sample", str(picture), "--frames", "2", "--steps", "200"]

    def listen() -> None:  # a shell's background jobs, and so their children, ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=listen, **pipes) as running:
        assert running.stderr is not None
        if when == "sampling":
            assert "photo.png" in running.stderr.readline()  # the work has begun
        library = {"importing torch": "libtorch", "sampling": "onnxruntime"}[when]  # by which the depth is guessed
        if (maps := Path(f"/proc/{running.pid}/maps")).exists():
            while running.poll() is None and library not in maps.read_text("utf-8"):
                time.sleep(0.02)
        if when == "sampling" or not maps.exists():
            time.sleep(1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    # Where the signal meets code that Python runs from a string, as a dataclass's, it ends itself by the same signal.
    assert running.returncode in (130, -signal.SIGINT)
    assert out == ""
    assert err.rstrip().endswith("Stopped.")
    assert "Traceback" not in err
    assert not list(Path().rglob("*.mp4"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"] if sys.platform == "linux" else ["127.0.0.1"])
def test_app_says_when_its_port_is_taken(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgm.cli.page._PATIENCE", 0.5)  # the other never answers
    with socket.create_server((host, 0)) as other:
        port = other.getsockname()[1]
        done = sgm("app", "--no-browser", "--port", port, "--host", host)
    assert done.exit_code == 1
    assert f"Port {port} is taken" in done.stderr


def test_training_without_lightning_says_how_to_get_it(tmp_path: Path) -> None:
    config = tmp_path / "training.yaml"
    config.touch()
    code = "import sys; sys.modules['lightning'] = None; from sgm.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "train", str(config)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Training needs lightning")
    assert ".[train]" in done.stderr


def test_download_without_a_name_that_is_known_is_2() -> None:
    done = sgm("download", "svd_9")
    assert done.exit_code == 2
    assert "choose one of svd_tiny" in done.stderr


def test_what_ships_is_not_downloaded() -> None:
    done = sgm("download", "svd_tiny")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("Error: svd_tiny is not to be downloaded.")


def test_convert_writes_another_precision_that_loads(picture: Path) -> None:
    weights = VERSIONS["svd_tiny"].checkpoint_path
    done = sgm("convert", weights, "half.safetensors", "--dtype", "bf16")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "half.safetensors\n"
    assert sgm("sample", picture, *SMALL, "--checkpoint", "half.safetensors").exit_code == 0
    again = sgm("convert", weights, "half.safetensors")
    assert again.exit_code == 1
    assert "half.safetensors exists already" in again.stderr


def test_an_orbit_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With made-up weights of SV3D's kind, small: what is written beside the video."""
    from tests.test_parity import OWN, golden_weights

    def load(version: str, *, low_memory: bool, **unused: object):
        assert low_memory
        engine = instantiate_from_config(load_config(OWN / "sv3d_p_small.yaml")["model"])
        golden_weights(OWN).fill(engine)
        engine.version = version
        return engine.freeze()

    monkeypatch.setattr("sgm.load_engine", load, raising=False)
    monkeypatch.setattr("sgm.check_weights", lambda *_, **__: None, raising=False)
    cut = Image.new("RGBA", (90, 50), (0, 0, 0, 0))
    cut.paste((200, 30, 30, 255), (60, 10, 80, 50))
    cut.save(tmp_path / "chair.png")
    args = [tmp_path / "chair.png", "--version", "sv3d_p", "--height", 64, "--width", 64, "--frames", 4, "--steps", 1]
    args += ["--azimuths", "90,180,270,360", "--elevation", "20", "--turntable", "--orbit-plot", "orbit.png"]
    done = sgm("sample", *args, "--low-memory")
    assert done.exit_code == 0, done.stderr
    video = Path("outputs") / "chair-sv3d_p-23.mp4"
    assert done.stdout == f"{video}\n"
    assert len(frames_of(video)) == 4
    with Image.open(video.with_name("chair-sv3d_p-23-turntable.webp")) as loop:
        assert loop.n_frames == 4  # pyright: ignore
    with Image.open(video.with_name("chair-sv3d_p-23-input.png")) as seen:
        assert seen.size == (64, 64)
        assert seen.getpixel((32, 32)) == (200, 30, 30)
    with Image.open("orbit.png") as plot:
        assert plot.size == (960, 432)
    settings = read_settings(video)
    assert settings is not None
    assert (settings["orbit"], settings["azimuths"]) == ("list", [90, 180, 270, 360])
    for wrong, said in (
        (["--azimuths", "1,b"], "'--azimuths': azimuths must be numbers"),
        (["--azimuths", "1,2"], "must be 4 numbers"),
    ):
        bad = sgm("sample", *args, *wrong)
        assert bad.exit_code == 2
        assert said in bad.stderr


def test_an_unknown_option_is_answered_with_the_nearest() -> None:
    done = sgm("sample", "a.png", "--seeed", "4")
    assert done.exit_code == 2
    assert "--seeed" in done.stderr
    assert re.search(r"--seed\b", done.stderr.replace("--seeed", ""))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (80, "1 min 20 s"),
        (599.6, "10 min"),
        (3599, "1 h"),
        (9000, "2 h 30 min"),
        (53_160, "15 h"),
    ],
)
def test_times_are_told_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text
