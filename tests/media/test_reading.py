"""Videos from anywhere: what is needed of them is read, within bounds; what cannot be read is one sentence."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from sgm import (
    EXPORTS,
    UserError,
    detect_watermark,
    encode_video,
    open_clip,
    open_video,
    read_frames,
    read_settings,
    write_frames,
    write_video,
)
from sgm.media import reading
from tests.media.damage import damaged

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)


def repeated(count: int, width: int, height: int, rate: Fraction | int = 30, tracks: int = 1) -> bytes:
    """An MP4 of one black frame, `count` times, as small as such a file can be."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        streams = [container.add_stream("libx264", rate=rate, options={"crf": "51", "g": "1"}) for _ in range(tracks)]
        frame = av.VideoFrame(width, height, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        packets = []
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame.pts in range(2):
                packets += stream.encode(frame)
            packets += stream.encode()
        for packet in packets[1::2]:  # the first one of each stream names the encoder, at length
            for number in range(count):
                packet.pts, packet.dts, packet.time_base = number, number, 1 / Fraction(rate)
                container.mux(packet)
    return file.getvalue()


def test_frames_are_read_one_by_one_from_either_end(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "frames.mkv", FRAMES, 7)
    with open_video(path) as video:
        assert (len(video), video.fps, video.settings) == (6, 7, None)
        for index in (0, -1, 3, -3, 0):
            assert np.array_equal(video[index], FRAMES[index])
        assert np.array_equal(list(video), FRAMES)
        with pytest.raises(UserError, match="frame 7 cannot be read"):
            video[6]


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read through `resource`")
def test_a_small_file_of_many_large_frames_costs_no_memory(tmp_path: Path) -> None:
    """One of 300 kB that would take 5 GB is refused, and its first frame read, in a process whose peak shows it."""
    content = repeated(790, 1920, 1088)
    assert len(content) < 400_000
    (tmp_path / "bomb.mp4").write_bytes(content)
    program = """
import resource, sys
from sgm import UserError, open_video, read_frames, read_settings, encode_video
import numpy as np
read_frames(encode_video(np.zeros((2, 64, 64, 3), np.uint8), 7))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_settings(sys.argv[1])
def read_last(path):
    with open_video(path) as video:
        return video[-1]
for read in (read_frames, read_last):
    try:
        read(sys.argv[1])
    except UserError as error:
        print(error)
with open_video(sys.argv[1]) as video:
    print(video[0].shape)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // (1024 if sys.platform == "darwin" else 1))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "bomb.mp4"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    *sentences, shape, kilobytes = done.stdout.splitlines()
    assert len(sentences) == 2
    assert all("790 of them are more than the 2 GB" in sentence for sentence in sentences)
    assert shape == "(1088, 1920, 3)"
    assert int(kilobytes) < 100_000


def test_bounds_are_named() -> None:
    many = repeated(reading.MAX_FRAMES + 1, 32, 32)
    with pytest.raises(UserError, match="more frames than the 800 that can be read"):
        read_frames(many)
    large = repeated(1, 4112, 4112)
    for read in (read_frames, read_settings):
        with pytest.raises(UserError, match=r"frames of 4112×4112 pixels, more than the 16\.8 megapixels"):
            read(large)
    at = large.rindex(b"avc1") + 28  # the index says that the frames are small; inside, they are not
    assert large[at : at + 4] == (4112).to_bytes(2, "big") * 2
    with pytest.raises(UserError, match=r"frames of 4112×4112 pixels|cannot be read as a video"):
        read_frames(large[:at] + (64).to_bytes(2, "big") * 2 + large[at + 4 :])
    with pytest.raises(UserError, match="cannot be read as a video"):
        read_settings(repeated(1, 32, 32, tracks=40))
    with (
        open_video(repeated(2, 32, 32, rate=5000)) as video,
        pytest.raises(UserError, match="says that it has 5000 frames a second"),
    ):
        video.fps  # noqa: B018


@pytest.mark.parametrize(
    "start", ["#EXTM3U\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile clip.mp4\n"]
)
def test_a_playlist_opens_nothing(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video("clip.mp4", FRAMES, 7)
    (tmp_path / "list.mp4").write_text(start)
    for source in (tmp_path / "list.mp4", (tmp_path / "list.mp4").read_bytes()):
        for read in (read_frames, read_settings):
            with pytest.raises(UserError, match="cannot be read as a video"):
                read(source)


def test_what_is_no_video_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "still.mp4", "PNG")
    with pytest.raises(UserError, match=r"still\.mp4 is a PNG picture"):
        read_settings(tmp_path / "still.mp4")
    with pytest.raises(UserError, match="is a folder, a pipe or a device"):
        read_frames(tmp_path)


@pytest.mark.parametrize("kind", ["GIF", "WebP"])
def test_an_animation_is_a_clip_within_the_same_bounds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.repeat(np.arange(0, 240, 40, dtype=np.uint8), 64 * 64 * 3).reshape(6, 64, 64, 3)
    frames, fps = read_frames(EXPORTS[kind][2](grey, 8))
    assert fps == pytest.approx(8, rel=0.01)
    np.testing.assert_allclose(frames, grey, atol=2)
    with pytest.raises(UserError, match="a picture of a single frame: give a video"):
        read_frames(EXPORTS[kind][2](grey[:1], 8))
    file, clear = io.BytesIO(), [Image.new("RGBA", (8, 8), (200, 0, level, 0)) for level in (0, 90)]
    for level, image in enumerate(clear):
        image.putpixel((0, 0), (0, 0, 99 * level, 255))
    clear[0].save(file, kind, save_all=True, append_images=clear[1:], lossless=True)
    assert (read_frames(file.getvalue())[0][:, 1:, 1:] == 255).all()  # as where pictures are transparent: on white
    content = EXPORTS[kind][2](grey, 8)
    for name, limit, said in (
        ("MAX_FRAMES", 5, "more frames than the 5 that"),
        ("MAX_DECODED", 40_000, "and 4 of them are more"),
        ("MAX_FRAME_PIXELS", 4000, "frames of 64×64 pixels"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(reading, name, limit)
            with pytest.raises(UserError, match=said):
                read_frames(content)


def test_a_size_that_changes_within_is_said() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        for number, side in enumerate((32, 64)):
            still = io.BytesIO()
            Image.new("RGB", (side, side)).save(still, "JPEG")
            packet = av.Packet(still.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 5)
            container.mux(packet)
    with pytest.raises(UserError, match="changes its size"):
        read_frames(file.getvalue())


def test_frames_are_counted_from_the_start_wherever_the_reading_stands(tmp_path: Path) -> None:
    content = write_frames(tmp_path / "clip.mkv", FRAMES, 7)  # which does not say how many there are
    with open_video(content) as video:
        first = next(video.frames())
        assert len(video) == len(FRAMES)
        assert np.array_equal(video[-1], FRAMES[-1])
        assert np.array_equal(video[0], first)
    for most in (1, 4):
        assert open_clip(content, most).length == len(FRAMES)


def test_the_last_frame_where_some_before_are_hidden(tmp_path: Path) -> None:
    """As a trimmed MP4's are by its edit list: they are counted, but not shown."""
    source, file = write_video(tmp_path / "clip.mp4", FRAMES, 7), io.BytesIO()
    with av.open(str(source)) as old, av.open(file, "w", format="mp4") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                late = 2 * (packet.duration or 0)
                packet.pts, packet.dts, packet.stream = (packet.pts or 0) - late, (packet.dts or 0) - late, stream
                new.mux(packet)
    whole = read_frames(source)[0]
    with open_video(file.getvalue()) as video:
        if (shown := sum(1 for _ in video)) == len(video):
            pytest.skip("this FFmpeg hides no frames by an edit list")
        assert np.array_equal(video[-1], whole[-1])
        assert np.array_equal(video[-shown], whole[-shown])


def test_what_is_there_of_a_clip_that_is_cut_short_is_read_and_said(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    content = write_video(tmp_path / "clip.mp4", FRAMES, 7, {"a": 1}).read_bytes()
    cut = content[: len(content) * 2 // 3]
    whole = read_frames(content)[0]
    with caplog.at_level(logging.WARNING, "sgm"):
        frames, fps = read_frames(cut)
    assert "The file is cut short: only the frames before the cut are read." in caplog.text
    assert 0 < len(frames) < len(whole)
    assert fps == 7
    assert np.array_equal(frames, whole[: len(frames)])
    with open_video(cut, "my.mp4") as video:
        assert (len(video), video.settings) == (6, {"a": 1})
        assert np.array_equal(video[0], whole[0])
        with pytest.raises(UserError, match=r"my\.mp4 (is cut short|cannot be read)"):
            video[-1]
    with open_video(content[: content.index(b"mdat") + 4]) as video:  # the index alone
        assert video.settings == {"a": 1}
        with pytest.raises(UserError, match="no picture in it"):
            video[0]


def test_two_hundred_damaged_clips_are_read_or_said(tmp_path: Path) -> None:
    small = FRAMES[:4, :32, :32]
    sources = [encode_video(small, 7, {"a": 1}), write_frames(tmp_path / "f.mkv", small, 7).read_bytes()]
    sources += [EXPORTS[kind][2](small, 7) for kind in ("GIF", "WebP")]
    outcomes = set()
    for content in damaged(sources, 200):
        for read in (read_settings, read_frames, partial(detect_watermark, name="a clip", search=False)):
            try:
                read(content)
                outcomes.add("read")
            except UserError:
                outcomes.add("said")
    assert outcomes == {"read", "said"}
