"""Every command where the system refuses: folders that may not be entered, names too long, streams closed or full."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sgm.cli.console import echo_result
from sgm.versions import VERSIONS, bundle
from tests.test_cli import SMALL, sgm

WEIGHTS, TRAINING = VERSIONS["svd_tiny"].checkpoint_path, bundle() / "configs" / "training" / "svd_tiny_video.yaml"
TRAIN = ["train", TRAINING, "init=null", "data.pictures=.", "data.clips=null"]
WALK = """
import json, sys
from typer.testing import CliRunner
from sgm.cli.commands import cli
for command in json.loads(sys.argv[1]):
    done = CliRunner().invoke(cli, command)
    raised = done.exception if not isinstance(done.exception, SystemExit) else None
    print(json.dumps([done.exit_code, done.stderr, repr(raised) if raised else None]))
"""


def _keep_out() -> Callable[[], None] | None:
    """What a child process calls so that permissions hold for it, if its user is Linux's root."""
    if sys.platform != "linux" or os.geteuid():
        return None
    libc = ctypes.CDLL(None)

    def drop() -> None:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; 24: PR_CAPBSET_DROP
            libc.prctl(24, capability, 0, 0, 0)

    return drop


def _commands(there: str) -> list[list[object]]:
    """Every command, with each of its paths below `there`."""
    sample = ["sample", "photo.png", *SMALL]
    return [
        ["sample", f"{there}/photo.png"],
        ["sample", there],
        [*sample, "--out", f"{there}/clip.mp4"],
        [*sample, "--out", f"{there}/clips"],
        [*sample, "--checkpoint", f"{there}/w.safetensors"],
        [*sample, "--base", f"{there}/w.safetensors", "--checkpoint", f"{there}/v.safetensors"],
        [*sample, "--recipe", f"{there}/clip.mp4"],
        [*sample, "--recipe", f"{there}/recipe.yaml"],
        ["sample", "photo.png", "--version", "sv3d_u", "--orbit-plot", f"{there}/orbit.png"],
        ["sweep", f"{there}/photo.png", "--vary", "seed=1,2"],
        ["sweep", there, "--vary", "seed=1,2"],
        ["sweep", "photo.png", *SMALL, "--vary", "seed=1,2", "--out", f"{there}/sweep"],
        ["sweep", "photo.png", "--vary", "seed=1,2", "--recipe", f"{there}/clip.mp4"],
        ["sweep", "photo.png", *SMALL, "--vary", "seed=1,2", "--checkpoint", f"{there}/w.safetensors"],
        ["score", f"{there}/clip.mp4"],
        ["score", there],
        ["score", "clip.mp4", "--picture", f"{there}/photo.png"],
        ["score", "clip.mp4", "--reference", f"{there}/clip.mp4"],
        ["score", "clip.mp4", "--csv", f"{there}/scores.csv"],
        ["score", "clip.mp4", "--fvd", f"{there}/real"],
        ["sample", f"{there}/clip.mp4", "--version", "sv4d2"],
        ["sample", there, "--version", "sv4d2"],
        ["repeat", f"{there}/clip.mp4", "--picture", "photo.png"],
        ["recipe", f"{there}/clip.mp4"],
        ["recipe", f"{there}/recipe.yaml"],
        ["convert", f"{there}/w.safetensors", "new.safetensors"],
        ["convert", f"{there}/diffusers", "new.safetensors"],
        ["convert", WEIGHTS, f"{there}/new.safetensors"],
        ["convert", WEIGHTS, f"{there}/new", "--to", "diffusers"],
        ["convert", WEIGHTS, "new.safetensors", "--config", f"{there}/model.yaml"],
        ["download", "svd", "--to", f"{there}/weights"],
        ["train", f"{there}/training.yaml"],
        [*TRAIN, f"out={there}/run"],
        [*TRAIN, "out=run", f"init={there}/w.safetensors"],
        [*TRAIN, "out=run", f"model={there}/model.yaml"],
        [*TRAIN, "out=run", f"data.pictures={there}/pictures"],
        [*TRAIN, "out=run", f"data.clips={there}/clips"],
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no folders that their owner may not enter")
def test_every_command_before_a_folder_that_may_not_be_entered(tmp_path: Path) -> None:
    shut = tmp_path / "shut"
    shut.mkdir()
    Image.new("RGB", (90, 60), "teal").save(tmp_path / "photo.png")
    shut.chmod(0)
    entered = subprocess.run(
        [sys.executable, "-c", "import os; os.listdir('shut')"], preexec_fn=_keep_out(), cwd=tmp_path, stderr=-3
    )
    if entered.returncode == 0:
        pytest.skip("this user enters every folder")
    commands = [[str(word) for word in command] for command in [*_commands("shut"), ["models"], ["app"]]]
    environment = {**os.environ, "PYTHONPATH": str(bundle()), "SGM_CHECKPOINTS": "shut/w", "SGM_OUTPUTS": "shut/o"}
    done = subprocess.run(
        [sys.executable, "-c", WALK, json.dumps(commands)],
        preexec_fn=_keep_out(),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    shut.chmod(0o700)
    assert done.returncode == 0, done.stderr
    for command, line in zip(commands, done.stdout.splitlines(), strict=True):
        code, stderr, raised = json.loads(line)
        assert raised is None, (command, raised)
        if command == ["models"]:
            assert code == 0
            continue
        assert code in (1, 2), (command, code, stderr)
        assert stderr.splitlines()[-1].startswith("Error: "), (command, stderr)
        assert "shut" in stderr, (command, stderr)
    assert "shut/w is passed over when weights are looked for" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "shut"]


def test_every_command_before_a_name_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (90, 60), "teal").save("photo.png")
    for command in _commands("x" * 300):
        done = sgm(*command)
        assert done.exit_code in (1, 2), command
        assert done.stderr.splitlines()[-1].startswith("Error: "), (command, done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize("variable", ["SGM_CHECKPOINTS", "SGM_OUTPUTS"])
def test_home_and_what_is_too_long_in_variables(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sgm.outputs import outputs_folder
    from sgm.versions import checkpoint_folders

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv(variable, "~/there")
    assert tmp_path / "there" in (outputs_folder(), checkpoint_folders()[0])
    monkeypatch.setenv(variable, "x" * 300)
    done = sgm("models") if variable == "SGM_CHECKPOINTS" else sgm("app", "--no-browser")
    assert done.exit_code == (0 if variable == "SGM_CHECKPOINTS" else 1)
    assert "Traceback" not in done.output


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such file names")
def test_names_that_would_steer_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    name = "a\x1b[31mb\nc\u202e.png"
    Image.new("RGB", (90, 60), "teal").save(name)
    done = sgm("sample", f"~/{name}", *SMALL, "--height", 64, "--width", 64, "--out=~/clips")
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'clips' / 'a_[31mb_c_-svd_tiny-23.mp4'}\n"
    for command in (["sample", f"none{name}"], ["sample", name, "--device", name], ["recipe", name], ["train", name]):
        done = sgm(*command)
        assert done.exit_code in (1, 2)
        assert not set("\x1b\u202e") & set(done.output)
        assert len(done.stderr.splitlines()) == 1
    Image.new("RGB", (90, 60), "teal").save("b.png")
    planned = sgm("sweep", name, "b.png", "--vary", "seed=1,2", "--dry-run")
    assert "picture  a\\x1b[31mb\\nc\\u202e.png, b.png\n" in planned.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals of this kind")
def test_results_are_exact_for_programs_and_harmless_on_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    echo_result("a\x1b[31m")
    assert capfd.readouterr().out == "a\x1b[31m\n"
    main, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        echo_result("a\x1b[31m\nb")
        assert os.read(main, 100) == b"a\\x1b[31m\r\nb\r\n"
    os.close(main)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize(
    ("command", "redirected", "code"),
    [
        ("--version", ">/dev/full", 1),
        ("--help", ">/dev/full", 1),
        ("recipe recipe.yaml", ">/dev/full", 1),
        ("--version", ">&-", 0),
        ("--version", "2>&-", 0),
        ("--version", "<&- >&- 2>&-", 0),
        ("train none.yaml", "2>/dev/full", 2),
        ("sample a.png --frames 2 --steps 1 --width 64 --height 64", "2>/dev/full", 0),
    ],
)
def test_streams_that_are_closed_or_full(command: str, redirected: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("version: svd_tiny\nsgm: {format: 1}\n")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    line = f'exec "{sys.executable}" -c "from sgm.cli import main; main()" {command} {redirected}'
    environment = {**os.environ, "PYTHONPATH": str(bundle())}
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr
    if code and "2>" not in redirected:
        assert "stdout: No space left" in done.stderr or "on stdout (No space left" in done.stderr


def test_an_interrupt_while_the_program_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(bundle())])}
    command = [sys.executable, "-c", "from sgm.cli import main; main()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps the current folder of a process")
def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for command in (["models"], ["sample", "x.png"], ["app"], ["download", "svd"]):
        done = sgm(*command)
        assert done.exit_code == 1
        assert done.stderr == "Error: The current folder is gone or cannot be entered: change to another one.\n"
