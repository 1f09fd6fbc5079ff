"""`sgm data`, its split, shards, and that training takes and leaves the same, on clips as cameras leave them."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import tarfile
from collections import Counter
from itertools import islice, takewhile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sgm import UserError, open_video, read_frames, write_video
from sgm.cli.commands import cli
from sgm.media.cutting import write_piece
from sgm.media.reading import Video
from sgm.training.checks import look, retimed
from sgm.training.clips import FolderClips, ShardClips, open_clips, read_reel
from sgm.training.shards import Place, samples, stream
from tests.real_clips import scene, turn, write_clip

FRAMES, SIZE = 8, (64, 112)
CPU = torch.device("cpu")


def sgm(*args: object):
    return CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    (folder / "in").mkdir()
    pan = write_clip(folder / "in" / "pan [1].mp4", scene(1, 24))
    shutil.copy(pan, folder / "pan, again.mp4")
    write_clip(folder / "small.mp4", scene(1, 24)[:, ::2, ::2], crf="30")
    turn(write_clip(folder / "turned.mp4", scene(2, 24)))
    write_clip(folder / "uneven.mp4", scene(3, 24), [i / 30 + (i // 4) / 15 for i in range(24)])
    write_clip(folder / "quick.mp4", scene(4, 32), 240.0)
    write_clip(folder / "slow.mp4", scene(5, 10), 0.5)
    write_clip(folder / "two.mp4", np.concatenate([scene(6, 20), scene(7, 20)]), g="20")
    write_clip(folder / "three.mkv", np.concatenate([scene(8, 13), scene(9, 15), scene(10, 4)]), g="250")
    write_clip(folder / "short.mp4", scene(11, 2))
    write_clip(folder / "black.mp4", scene(12, 12) // 16)
    write_clip(folder / "still.mp4", scene(13, 12, step=0), preset="medium")
    write_clip(folder / "flicks.mp4", np.concatenate([scene(i, 5) for i in range(20, 24)]))
    (folder / "broken\x1b.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("of the day")
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    return folder


LEFT_OUT = {
    "pan, again.mp4": "copy",
    "slow.mp4": "slow",
    "short.mp4": "short",
    "black.mp4": "black",
    "still.mp4": "frozen",
    "flicks.mp4": "cut",
    "broken\x1b.mp4": "unreadable",
}


def test_what_lies_in_a_folder(folder: Path) -> None:
    done = sgm("data", folder, "--frames", FRAMES, "--json")
    assert (done.exit_code, done.stderr) == (0, f"Left out of {folder}: picture.png (a PNG picture).\n")
    told = json.loads(done.stdout)
    rows = {row["clip"]: row for row in told["clips"]}
    assert {name: row["left_out"] for name, row in rows.items() if row["left_out"]} == LEFT_OUT
    assert told["left_out"] == Counter(LEFT_OUT.values())
    assert rows["pan, again.mp4"]["copy_of"] == "in/pan [1].mp4"  # whose own name is shorter
    assert {name for name, row in rows.items() if row["like"]} == {"small.mp4"}
    pan, turned, uneven, quick = (rows[f"{name}.mp4"] for name in ("in/pan [1]", "turned", "uneven", "quick"))
    assert [pan[key] for key in ("width", "height", "frames", "samples")] == [112, 64, 24, 3]
    assert (pan["fps"], pan["seconds"]) == (pytest.approx(30, rel=1e-3), pytest.approx(0.8, rel=1e-3))
    assert pan["bucket"] == pytest.approx(127 / 0.8 * 2 / 112 * 100, rel=0.1)
    assert (turned["width"], turned["height"]) == (64, 112)
    assert (uneven["variable"], pan["variable"]) == (True, False)
    assert uneven["fps"] == pytest.approx(23 / (23 / 30 + 5 / 15), rel=1e-3)
    assert (quick["fps"], quick["samples"]) == (pytest.approx(240, rel=1e-3), 2)  # of every second frame
    assert rows["two.mp4"]["cuts"] == pytest.approx([20 / 30], abs=1e-3)
    assert rows["three.mkv"]["cuts"] == pytest.approx([13 / 30, 28 / 30], abs=2e-3)
    assert sum(entry["clips"] for entry in told["motion_buckets"]) == told["kept"] == 7
    assert told["samples"] == sum(row["samples"] for row in rows.values() if not row["left_out"])


def test_the_report_and_the_table_for_programs(folder: Path, tmp_path: Path) -> None:
    done = sgm("data", folder, "--frames", FRAMES, "--csv", tmp_path / "clips.csv")
    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert "trained on  7 clips: 20 samples of 8 frames, 1024×576" in done.stdout
    assert "left out    1 clip: they cannot be read" in done.stdout
    for name, remark in (("in/pan [1].mp4", ""), ("pan, again.mp4", "copy of"), ("still.mp4", "stands")):
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(name))
        assert remark in line
    rows = list(csv.DictReader(io.StringIO((tmp_path / "clips.csv").read_text())))
    assert {row["clip"]: row["left_out"] for row in rows if row["left_out"]} == LEFT_OUT
    assert sgm("data", folder, "--json", "--csv", "-").exit_code == 2


def test_training_leaves_out_the_same(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = open_clips(folder, SIZE)
    assert isinstance(clips, FolderClips)
    torch.manual_seed(0)
    for _ in range(4):  # what clips show is looked at when they are drawn
        batch = clips.draw(8, FRAMES, CPU)
        for clip in batch.video:
            seen = look(((clip.permute(0, 2, 3, 1).numpy() + 1) * 127.5).round().astype(np.uint8))
            assert not seen.cut.any()
            assert not seen.black.any()
            assert seen.still.mean() <= 0.5
        assert float(batch.fps_id.max()) <= 119.01
    said = "".join(record.getMessage() for record in caplog.records)
    for name in LEFT_OUT:
        assert name.replace("\x1b", "\\x1b") in said
    assert "byte for byte" in said
    assert f"More: sgm data {folder}" in said


def test_of_a_long_clip_no_more_is_decoded_than_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "long.mp4", scene(1, 400, step=1), g="10")
    monkeypatch.setattr("sgm.training.clips._MAX_STORED", 0)
    clips = open_clips(tmp_path, SIZE)
    read: list[int] = []
    upright = Video._upright
    monkeypatch.setattr("sgm.media.reading.Video._upright", lambda *args: (read.append(1), upright(*args))[1])
    batch = clips.draw(3, FRAMES, CPU)
    assert batch.video.shape == (3, FRAMES, 3, *SIZE)
    assert 3 * FRAMES <= len(read) <= 3 * (3 * (FRAMES - 1) + 1)
    assert sgm("data", tmp_path, "--frames", FRAMES, "--seconds", 2, "--csv", "-").stdout.count("long.mp4") == 1
    assert len(read) < 150


def test_a_sample_taken_anywhere_is_what_the_whole_clip_has_there(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", scene(1, 60), g="25", bf="2")
    whole, _ = read_frames(path)
    for start in (0, 1, 24, 25, 40):
        reel = read_reel(path, "clip.mp4", SIZE, 30.0, start / 30, 10)
        assert np.array_equal(reel.frames.permute(0, 2, 3, 1).numpy(), whole[start : start + 10])
        assert reel.rate == pytest.approx(30, rel=1e-3)


def test_uneven_frames_are_taken_at_the_mean_rate() -> None:
    assert retimed([0, 1, 2, 3])[0].tolist() == [0, 1, 2, 3]
    order, rate = retimed([0, 0.1, 0.2, 0.3, 1.0])
    assert (order.tolist(), rate) == ([0, 2, 3, 4, 4], 4.0)


def test_flashes_and_quick_moves_are_no_cuts() -> None:
    flash = scene(1, 20)
    flash[9] = 255
    assert not look(flash).cut.any()
    assert not look(scene(2, 12, step=40)).cut.any()
    assert np.flatnonzero(look(np.concatenate([scene(3, 9), scene(4, 9)])).cut).tolist() == [8]


def test_frames_are_upright_and_hdr_is_brought_into_range(tmp_path: Path) -> None:
    frames = scene(1, 3)
    frames[:, :20, :20] = (250, 10, 10)
    path = turn(write_clip(tmp_path / "turned.mp4", frames))
    with open_video(path) as video:
        assert video.size == (64, 112)
        (first, *_) = video
        assert first.shape == (112, 64, 3)
        assert first[4:14, -14:-4].mean(axis=(0, 1)) == pytest.approx([250, 10, 10], abs=12)
        assert next(video.frames((32, 56))).shape == (56, 32, 3)
    grey = np.full((3, 64, 64, 3), 146, np.uint8)
    with av.open(str(tmp_path / "hlg.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = 18, 9, 9
        for pixels in grey:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    with open_video(tmp_path / "hlg.mp4") as video:
        assert video.is_hdr
        assert next(iter(video)).mean() == pytest.approx(170, abs=8)  # half of HLG's range is 170 in BT.709's


def test_clips_are_split_at_their_cuts_and_the_source_stays(folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = sgm("data", folder, "--frames", FRAMES, "--split", tmp_path / "split")
    assert done.exit_code == 0
    assert "5 clips as they are and 4 pieces, of which 3 have the source's coded frames; 1 of fewer" in done.stderr
    made = {path.relative_to(tmp_path / "split").as_posix() for path in (tmp_path / "split").rglob("*.m*")}
    pieces = {"two-001.mp4", "two-002.mp4", "three-001.mkv", "three-002.mp4"}
    assert made == pieces | {"in/pan [1].mp4", "small.mp4", "turned.mp4", "uneven.mp4", "quick.mp4"}
    for name, piece, start, end, near in (
        ("two.mp4", "two-001.mp4", 0, 20, 0),
        ("two.mp4", "two-002.mp4", 20, 40, 0),
        ("three.mkv", "three-001.mkv", 0, 13, 0),
        ("three.mkv", "three-002.mp4", 13, 28, 4),
    ):
        frames, fps = read_frames(tmp_path / "split" / piece)
        whole = read_frames(folder / name)[0][start:end]
        assert frames.shape == whole.shape
        assert fps == pytest.approx(30, rel=0.01)
        assert np.abs(frames.astype(int) - whole).mean() <= near
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert sgm("data", folder, "--frames", FRAMES, "--split", folder / "x").exit_code == 2
    again = sgm("data", folder / "in", "--frames", FRAMES, "--split", tmp_path / "split")
    assert f"{tmp_path / 'split-2'}: 1 clips as they are" in again.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_is_cut_from_after_the_end(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shows no frame from 90 to 91 seconds"):
        write_piece(folder / "small.mp4", 90, 91, tmp_path / "piece")
    assert not list(tmp_path.iterdir())


def test_a_split_for_which_the_disk_has_no_room_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows has no limit on a file's size")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        done = sgm("data", folder, "--frames", FRAMES, "--split", tmp_path / "split")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.exit_code == 1
    assert re.search(r"split.* cannot be written \(.*make room or choose another place", done.stderr)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("empty", "holds no clips that can be read"),
        ("pictures", "holds no clips that can be read: name the folder that holds them. Left out"),
        ("file", "is a file: give a folder of clips or of shards"),
        ("missing", "There is no folder"),
        ("list", "lists what is not there: "),
    ],
)
def test_what_is_no_folder_of_clips_is_one_sentence(what: str, said: str, tmp_path: Path) -> None:
    place = tmp_path / what
    if what in ("empty", "pictures"):
        place.mkdir()
    if what == "pictures":
        Image.new("RGB", (8, 8)).save(place / "a.png")
    if what == "file":
        write_video(place.with_suffix(".mp4"), scene(1, 2), 10).rename(place)
    if what == "list":
        place = place.with_suffix(".txt")
        place.write_text("none.tar\n")
    done = sgm("data", place)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    if what != "missing":
        with pytest.raises(UserError, match=said.partition(":")[0]):
            open_clips(place, SIZE)


def test_nothing_that_can_be_trained_on_is_exit_code_1(tmp_path: Path) -> None:
    write_clip(tmp_path / "black.mp4", scene(12, 12) // 16)
    assert sgm("data", tmp_path, "--frames", FRAMES).exit_code == 1
    clips = open_clips(tmp_path, SIZE)
    with pytest.raises(UserError, match=r"No clip of .* has 8 frames in a row that can be trained on: see sgm data"):
        clips.draw(1, FRAMES, CPU)


def shard(path: Path, members: dict[str, bytes | str]) -> Path:
    """A tar archive; a text stands for a link to it."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname, content = tarfile.SYMTYPE, content, b""
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of three clips each, of 24 frames and, the last, of 20."""
    place = tmp_path_factory.mktemp("shards")
    names = [["in/pan [1].mp4", "turned.mp4", "uneven.mp4"], ["small.mp4", "quick.mp4", "two.mp4"]]
    for number, group in enumerate(names):
        members: dict[str, bytes | str] = {}
        for i, name in enumerate(group):
            members |= {f"{number}{i}.json": b"{}", f"{number}{i}.mp4": (folder / name).read_bytes()}
        shard(place / f"{number}.tar", members)
    return place


def names(paths: list[Path], seed: int, part: int = 0, parts: int = 1) -> list[str]:
    """What the first pass over shards has."""
    taken = stream(paths, print, seed, part, parts, Place())
    return [sample.name for sample, _ in takewhile(lambda pair: pair[1].turn == 0, taken)]


def test_shards_are_shuffled_by_the_seed_and_split_over_parts(shards: Path) -> None:
    paths, all_of_them = sorted(shards.iterdir()), {f"{i}.tar/{i}{k}.mp4" for i in range(2) for k in range(3)}
    whole = names(paths, 1)
    assert set(whole) == all_of_them
    assert whole == names(paths, 1)
    assert len({tuple(names(paths, seed)) for seed in range(8)}) > 1
    for parts in (2, 3):  # whole shards, and clips of each
        dealt = [name for part in range(parts) for name in names(paths, 1, part, parts)]
        assert len(dealt) == 6
        assert set(dealt) == all_of_them


@pytest.mark.parametrize(("part", "parts"), [(0, 1), (1, 2), (2, 3)])
def test_shards_go_on_from_each_place_as_without_a_stop(
    part: int, parts: int, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgm.training.shards._TOGETHER", 4)  # of a shard and the next one
    paths = sorted(shards.iterdir())
    whole = list(islice(stream(paths, print, 1, part, parts, Place()), 15))
    assert whole[-1][1].turn > 1
    for done, (_, place) in enumerate(whole, 1):
        rest = stream(paths, print, 1, part, parts, place)
        assert list(islice(rest, 15 - done)) == whole[done:]


def test_shards_are_trained_on(shards: Path, tmp_path: Path) -> None:
    listed = tmp_path / "shards.txt"
    listed.write_text("# of the day\n" + "\n".join(map(str, sorted(shards.iterdir()))) + "\n")
    drawn = []
    for place in (shards, listed):
        clips = open_clips(place, SIZE)
        assert isinstance(clips, ShardClips)
        torch.manual_seed(0)
        drawn.append([clips.draw(2, FRAMES, CPU) for _ in range(4)])  # more than one pass
    assert drawn[0][3].video.shape == (2, FRAMES, 3, *SIZE)
    assert all(torch.equal(a.video, b.video) for a, b in zip(*drawn, strict=True))
    rows = json.loads(sgm("data", listed, "--frames", FRAMES, "--json").stdout)["clips"]
    assert {row["clip"] for row in rows} == set(names(sorted(shards.iterdir()), 1))
    assert not any(row["left_out"] for row in rows)
    done = sgm("data", shards, "--split", tmp_path / "split")
    assert (done.exit_code, "unpack shards first" in done.stderr) == (2, True)


def test_of_a_shard_what_is_damaged_costs_itself_and_nothing_leads_out(folder: Path, tmp_path: Path) -> None:
    clip = (folder / "in" / "pan [1].mp4").read_bytes()
    members = {"../out.mp4": clip, "/etc/out.mp4": clip, "link.mp4": "/etc/passwd", "code.pkl": b"cos\nsystem\n"}
    path = shard(tmp_path / "a.tar", {"a.mp4": clip, **members, "b.mp4": clip, "a" * 200 + ".mp4": clip, "d.mp4": clip})
    said: list[str] = []
    assert [sample.read() for sample in samples(path, said.append)] == [clip] * 4
    (line,) = said
    for name in (*members, "leads out of the archive", "no regular file", "code.pkl (no clip)"):
        assert name in line
    content = bytearray(path.read_bytes())
    content[content.index(b"b.mp4")] ^= 1  # the checksum of its header is no longer right
    path.write_bytes(content)
    assert [sample.name[-5:] for sample in samples(path, said.append)] == ["a.mp4", "a.mp4", "d.mp4"]
    assert f"{len(clip) / 1e6:.1f} MB before aaaa" in said[1]
    path.write_bytes(content[: content.rindex(b"d.mp4") + 2000])
    assert [sample.name[-5:] for sample in samples(path, said.append)] == ["a.mp4", "a.mp4"]
    assert "what follows, since the archive is damaged (d.mp4 is cut short)" in said[2]


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + (1 << 40).to_bytes(11, "big")])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_shard_that_lies_of_its_sizes_costs_no_memory_and_no_time(kind: bytes, size: bytes, tmp_path: Path) -> None:
    member = tarfile.TarInfo("x.mp4")
    member.type = kind
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(10240))
    said: list[str] = []
    assert not list(samples(tmp_path / "a.tar", said.append))
    assert len(said) == 1
    with pytest.raises(UserError, match="holds no clips that can be read"):
        open_clips(tmp_path, SIZE).draw(1, FRAMES, CPU)
