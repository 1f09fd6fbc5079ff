"""Videos are written whole, as browsers want them, and carry their settings."""

from __future__ import annotations

import sys

import av
import numpy as np
import pytest

from sgm.errors import UserError
from sgm.media import video as module
from sgm.media.reading import read_frames, read_settings
from sgm.media.video import write_frames, write_video


def moving(count=5, height=48, width=64):
    """A smooth gradient that shifts by three pixels a frame."""
    y, x = np.mgrid[:height, :width]
    return np.stack([np.stack([x + 3 * t, 2 * y + 20, x + y], axis=-1) for t in range(count)]).astype(np.uint8)


def noise(count=5):
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def decoded(path):
    """The frames of a file as RGB, read by the matrix that the file names."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24", src_colorspace="ITU601") for f in container.decode(video=0)])


@pytest.mark.parametrize(("count", "fps"), [(1, 7), (2, 30), (14, 6), (25, 1), (14, 5), (3, 23)])
def test_frame_count_and_rate_come_back_exactly(tmp_path, count, fps):
    path = write_video(tmp_path / "clip.mp4", moving(count), fps)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [frame.time for frame in container.decode(stream)]
        assert stream.frames == len(times) == count
        assert stream.average_rate == fps
        assert float(stream.duration * stream.time_base) == pytest.approx(count / fps)
    assert times == pytest.approx([number / fps for number in range(count)], abs=1e-4)


def test_a_broken_rate_is_kept(tmp_path):
    with av.open(str(write_video(tmp_path / "clip.mp4", moving(), 12.5))) as container:
        assert float(container.streams.video[0].average_rate) == 12.5


def test_browsers_can_play_it(tmp_path):
    path = write_video(tmp_path / "clip.mp4", moving(), 6)
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (6, 1, 1, 1)
    content = path.read_bytes()
    assert content.find(b"moov") < content.find(b"mdat"), "the index must stand first"


def test_pixels_survive(tmp_path):
    frames = moving()
    colours = np.zeros_like(frames)
    colours[:, :24, :32], colours[:, 24:, :32], colours[:, :, 32:] = (200, 30, 10), (20, 190, 60), (40, 60, 220)
    for number, clip in enumerate((frames, colours)):
        back = decoded(write_video(tmp_path / f"{number}.mp4", clip, 6)).astype(float)
        assert np.abs(back - clip).mean() < 2.5


@pytest.mark.parametrize(("height", "width"), [(47, 63), (48, 63), (47, 64), (1, 1), (5, 300)])
def test_odd_sizes_gain_one_repeated_line_and_nothing_else(tmp_path, height, width):
    frames = moving(3, height, width)
    back = decoded(write_video(tmp_path / "clip.mp4", frames, 6))
    assert back.shape == (3, height + height % 2, width + width % 2, 3)
    assert np.abs(back[:, :height, :width].astype(float) - frames).mean() < 4


def test_settings_come_back(tmp_path):
    settings = {
        "name": "Märchen 雪 🐦",
        "tricky": "a=b; #c \\ 'd' \"e\"\n\tnew line\r\n",
        "lone": "\udc80",  # what Python makes of a file name that is not UTF-8
        "long": "x" * 20_000,
        "number": 0.02,
        "none": None,
        "nested": {"list": [1, True, "ü"]},
    }
    assert read_settings(write_video(tmp_path / "clip.mp4", moving(), 6, settings)) == settings


def test_settings_that_are_not_there(tmp_path):
    assert read_settings(write_video(tmp_path / "clip.mp4", moving(), 6)) is None
    assert read_settings(write_video(tmp_path / "clip.mp4", moving(), 6, {})) == {}


def test_settings_that_are_not_utf_8_are_read_but_for_those_bytes(tmp_path):
    content = write_video(tmp_path / "clip.mp4", moving(), 6, {"name": "Zo?", "seed": 3}).read_bytes()
    assert read_settings(content.replace(b"Zo?", "Zoë".encode("latin-1"))) == {"name": "Zo\ufffd", "seed": 3}


@pytest.mark.parametrize("comment", ["made on a Sunday", "[1, 2]", "{", "[" * 100_000])
def test_a_comment_of_somebody_else_is_no_settings(tmp_path, comment):
    path = tmp_path / "other.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(noise(1)[0], format="rgb24")))
        container.mux(stream.encode())
    assert read_settings(path) is None


@pytest.mark.parametrize(("name", "number"), [("ITU709", 1), ("ITU601", 6)])
def test_colours_of_somebody_else_s_video_are_read_by_the_matrix_that_it_names(tmp_path, name, number):
    path, frames = tmp_path / "other.mp4", moving()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace = number
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=name, dst_color_range="MPEG")))
        container.mux(stream.encode())
    back, rate = read_frames(path)
    assert rate == 5
    assert np.abs(back.astype(float) - frames).mean() < 2  # by the other matrix 2.8 and more


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["comment"] = '{"a": 1}'
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux([*stream.encode(sound), *stream.encode()])
    for read in (read_frames, read_settings):
        with pytest.raises(UserError, match=r"sound\.mp4 cannot be read as a video \(damaged, or no picture in it\)"):
            read(path)


@pytest.mark.parametrize("count", [0, 200, 3000])
def test_a_video_that_is_cut_short_is_said(tmp_path, count):
    content = write_video(tmp_path / "clip.mp4", noise(), 6).read_bytes()[:count]
    with pytest.raises(UserError, match=r"The file cannot be read as a video"):
        read_frames(content)


def test_settings_of_something_that_is_no_video(tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")
    with pytest.raises(UserError, match=r"notes\.mp4 cannot be read as a video"):
        read_settings(tmp_path / "notes.mp4")
    with pytest.raises(UserError, match=r"gone\.mp4 does not exist"):
        read_settings(tmp_path / "gone.mp4")


def test_folders_are_made_and_odd_names_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "new/größe 雪/50% %03d.MP4" if sys.platform == "win32" else "new:x/größe 雪/50% %03d:a.MP4"
    path = write_video(name, moving(), 6, {"a": 1})
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    assert read_settings(name) == {"a": 1}


@pytest.mark.parametrize("name", ["clip", "clip.avi", "clip.mp4.txt", ".mp4"])
def test_a_wrong_suffix_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"must end in \.mp4"):
        write_video(tmp_path / name, moving(), 6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "frames",
    [moving().astype(np.float32), moving()[0], moving()[..., :1], moving()[:0]],
    ids=["float", "one picture", "grey", "none"],
)
def test_wrong_frames_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="must be uint8"):
        write_video(tmp_path / "clip.mp4", frames, 6)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), 1001])
def test_a_wrong_rate_is_refused(tmp_path, fps):
    with pytest.raises(ValueError, match="fps is"):
        write_video(tmp_path / "clip.mp4", moving(), fps)


def test_settings_that_json_cannot_hold_leave_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_video(tmp_path / "clip.mp4", moving(), 6, {"a": object()})
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("here first")
    with pytest.raises(UserError, match="cannot be written"):
        write_video(tmp_path / "file" / "clip.mp4", moving(), 6)
    (tmp_path / "folder.mp4" / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be written"):
        write_video(tmp_path / "folder.mp4", moving(), 6)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "folder.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits on a file's size are POSIX")
@pytest.mark.parametrize(("write", "name"), [(write_video, "clip.mp4"), (write_frames, "frames.mkv")])
def test_a_full_disk_leaves_the_older_file_and_nothing_half_written(tmp_path, write, name):
    import resource

    path = write(tmp_path / name, noise(), 5)
    older, place, size = path.read_bytes(), path.stat().st_ino, path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 1000, size // 2, size - 1500, size - 100, size - 20, size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        try:
            with pytest.raises(UserError, match="cannot be written"):
                write(path, noise(), 5)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [found.name for found in tmp_path.iterdir()] == [name]
        assert (path.read_bytes(), path.stat().st_ino) == (older, place)


def test_an_encoder_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write_video(tmp_path / "clip.mp4", np.zeros((1, 2, 20_000, 3), np.uint8), 6)
    assert not list(tmp_path.iterdir())


def test_a_second_video_replaces_the_first(tmp_path):
    write_video(tmp_path / "clip.mp4", moving(), 6, {"take": 1})
    path = write_video(tmp_path / "clip.mp4", moving(7), 8, {"take": 2})
    assert read_settings(path) == {"take": 2}
    assert len(decoded(path)) == 7


def test_equal_frames_make_equal_files(tmp_path):
    contents = {write_video(tmp_path / "clip.mp4", moving(14, 192, 320), 6).read_bytes() for _ in range(6)}
    assert len(contents) == 1


@pytest.mark.parametrize(("height", "width"), [(64, 64), (47, 63), (1, 1)])
@pytest.mark.parametrize("fps", [7, 12.5])
def test_frames_without_loss_come_back_to_the_last_bit(tmp_path, height, width, fps):
    frames = np.random.default_rng(1).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    frames[1] = [255, 0, 255]  # what a change of colour space would shift
    back, rate = read_frames(write_frames(tmp_path / "new" / "frames.mkv", frames, fps))
    assert rate == fps
    assert back.dtype == np.uint8
    assert np.array_equal(back, frames)


def test_frames_without_loss_are_written_whole_or_not_at_all(tmp_path):
    path = write_frames(tmp_path / "frames.mkv", moving(), 6)
    older = path.read_bytes()
    with pytest.raises(UserError, match=r"must end in \.mkv"):
        write_frames(tmp_path / "frames.mp4", moving(), 6)
    with pytest.raises(ValueError, match="must be uint8"):
        write_frames(path, moving().astype(np.float32), 6)
    with pytest.raises(UserError, match="cannot be written"):
        write_frames(path / "frames.mkv", moving(), 6)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == older
    write_frames(path, noise(2), 8)
    assert np.array_equal(read_frames(path)[0], noise(2))


def test_another_encoder_is_taken_and_none_is_said_before_the_work(tmp_path, monkeypatch):
    """The encoders are FFmpeg's own: one that is not built in, one whose GPU is not here, and one that works."""
    module.video_encoder.cache_clear()
    missing = {"libopenh264_of_nobody": {}, "h264_v4l2m2m": {}}
    monkeypatch.setattr(module, "_ENCODERS", {**missing, "libx264": {}})
    assert module.video_encoder() == "libx264"
    frames = moving()
    back = decoded(write_video(tmp_path / "clip.mp4", frames, 6))  # at a bit rate instead of a quality
    assert np.abs(back.astype(float) - frames).mean() < 4
    module.video_encoder.cache_clear()
    monkeypatch.setattr(module, "_ENCODERS", missing)
    for write in (module.video_encoder, lambda: write_video(tmp_path / "none.mp4", frames, 6)):
        with pytest.raises(UserError, match=r"FFmpeg has no H\.264 encoder that works here .* Install PyAV"):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    monkeypatch.undo()
    assert module.video_encoder() == "libx264"
