"""Videos and film strips, read back from disk."""

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from immiscible_policy.evaluation.video import film_strip, require_writable, write_video

RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 220)


def plain(colour, height=96, width=96):
    return np.full((height, width, 3), colour, np.uint8)


def moving_square(n_frames=12, size=96):
    """A blue square on white that moves right by 6 pixels a frame."""
    frames = []
    for number in range(n_frames):
        frame = plain((255, 255, 255), size, size)
        frame[40:60, 6 * number : 6 * number + 16] = BLUE
        frames.append(frame)
    return frames


def only_file(folder):
    return [path.name for path in folder.iterdir()]


def test_video_holds_the_frames_it_was_given(tmp_path):
    frames = moving_square()
    path = write_video(frames, tmp_path / "videos" / "episode.mp4", fps=10)
    read = iio.imread(path, plugin="FFMPEG")
    assert read.shape == (12, 96, 96, 3)
    for frame, given in zip(read, frames, strict=True):
        assert np.abs(frame.astype(int) - given).mean() < 4
    # The square is where it belongs in each frame, so frames are neither repeated nor reordered.
    for number, frame in enumerate(read):
        columns = np.flatnonzero(frame[50, :, 0] < 128)
        assert abs(columns.mean() - (6 * number + 7.5)) < 1
    assert only_file(tmp_path / "videos") == ["episode.mp4"]


def test_video_is_h264_yuv420p_at_the_rate_asked_for(tmp_path):
    path = write_video(moving_square(), tmp_path / "episode.mp4", fps=5)
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    reader.close()
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == 5
    assert meta["duration"] == pytest.approx(12 / 5, abs=0.05)


@pytest.mark.parametrize(("height", "width", "shape"), [(95, 97, (96, 98)), (33, 64, (34, 64)), (50, 66, (50, 66))])
def test_odd_sizes_become_even_by_repeating_the_edge(tmp_path, height, width, shape):
    frames = [plain(RED, height, width)] * 3
    read = iio.imread(write_video(frames, tmp_path / "odd.mp4"), plugin="FFMPEG")
    assert read.shape == (3, *shape, 3)
    assert np.abs(read.astype(int) - np.array(RED)).max() < 12


def test_one_frame_and_frames_that_are_views(tmp_path):
    flipped = moving_square(1)[0][:, ::-1]
    read = iio.imread(write_video([flipped], tmp_path / "one.mp4"), plugin="FFMPEG")
    assert len(read) == 1
    assert np.abs(read[0].astype(int) - flipped).mean() < 4


def test_an_existing_video_is_replaced(tmp_path):
    path = write_video([plain(RED)] * 2, tmp_path / "v.mp4")
    write_video([plain(BLUE)] * 3, path)
    read = iio.imread(path, plugin="FFMPEG")
    assert len(read) == 3
    assert np.abs(read[0].astype(int) - np.array(BLUE)).max() < 12


def test_a_failure_midway_leaves_the_old_video_and_no_rest(tmp_path, monkeypatch):
    path = write_video([plain(RED)] * 2, tmp_path / "v.mp4")
    before = path.read_bytes()

    def break_at_second_frame(target, *arguments, **options):
        with open(target, "wb") as file:
            file.write((yield))
            yield
            raise OSError("no space left")

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", break_at_second_frame)
    with pytest.raises(OSError, match="no space left"):
        write_video([plain(BLUE)] * 3, path)
    assert path.read_bytes() == before
    assert only_file(tmp_path) == ["v.mp4"]


def test_an_encoder_that_stops_is_told_in_one_line(tmp_path, monkeypatch):
    """Its own report is a paragraph."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    frames = [plain(RED, 512, 512)] * 20
    with pytest.raises(OSError, match=r"^cannot write \S+/v.mp4: the video encoder has stopped \(.*Broken pipe\)$"):
        write_video(frames, tmp_path / "v.mp4")
    assert only_file(tmp_path) == []


def test_where_no_video_can_be_written_is_known_beforehand(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    for name, reason in (("file/v.mp4", "(Not a directory|File exists)"), ("folder.mp4", "Is a directory")):
        with pytest.raises(OSError, match=rf"^cannot write \S+/{name}: {reason}$"):
            require_writable(tmp_path / name)
    require_writable(tmp_path / "new" / "v.mp4")
    assert list((tmp_path / "new").iterdir()) == []


def test_an_encoder_that_writes_nothing_is_an_error(tmp_path, monkeypatch):
    def swallow(*arguments, **options):
        while True:
            yield

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", swallow)
    with pytest.raises(OSError, match="wrote nothing"):
        write_video([plain(RED)], tmp_path / "v.mp4")
    assert only_file(tmp_path) == []


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        ([], {}, "frames is empty"),
        ([plain(RED).astype(np.float32)], {}, r"frames\[0\] must be \(H, W, 3\) uint8, got float32"),
        ([plain(RED), plain(RED)[..., 0]], {}, r"frames\[1\] must be .* got uint8 of shape \(96, 96\)"),
        ([plain(RED), plain(RED, 64)], {}, r"frames\[1\] has shape \(64, 96, 3\), unlike frame 0"),
        ([plain(RED)], {"fps": 0}, "fps must be positive, got 0"),
        ([plain(RED)], {"path": "video.gif"}, r"path must end in \.mp4, got .*video\.gif"),
    ],
)
def test_bad_video_input(tmp_path, frames, options, message):
    path = tmp_path / options.pop("path", "v.mp4")
    with pytest.raises(ValueError, match=message):
        write_video(frames, path, **options)
    assert only_file(tmp_path) == []


def ramp(n_frames):
    """Frames whose grey level says their number."""
    return [plain((number, number, number), 40, 40) for number in range(n_frames)]


def cells(path, n_rows, n_frames, cell, titles):
    """Grey level at the middle of each cell of a strip: (n_rows, n_frames)."""
    strip = np.asarray(Image.open(path).convert("RGB"))
    row_height = (20 if titles else 0) + cell + 20 + 6
    assert strip.shape == (n_rows * row_height + 6, n_frames * (cell + 6) + 6, 3)
    tops = [6 + row * row_height + (20 if titles else 0) + cell // 2 for row in range(n_rows)]
    lefts = [6 + column * (cell + 6) + cell // 2 for column in range(n_frames)]
    return strip[np.ix_(tops, lefts)][..., 0]


def test_strip_has_a_row_an_episode_and_columns_equally_spaced(tmp_path):
    path = film_strip([ramp(71), ramp(8)], tmp_path / "new" / "strip.png", n_frames=8, titles=["a", "b"])
    levels = cells(path, 2, 8, 160, titles=True)
    assert levels[0].tolist() == [0, 10, 20, 30, 40, 50, 60, 70]
    assert levels[1].tolist() == list(range(8))
    assert only_file(path.parent) == ["strip.png"]


def test_a_short_episode_shows_each_frame_once(tmp_path):
    path = film_strip([ramp(3), ramp(100)], tmp_path / "strip.png", n_frames=4, cell_size=150)
    levels = cells(path, 2, 4, 150, titles=False)
    assert levels[0].tolist() == [0, 1, 2, 255]
    assert levels[1].tolist() == [0, 33, 66, 99]


def test_captions_follow_step_and_coverage(tmp_path):
    frames = [ramp(5)]

    def captions(name, **options):
        return np.asarray(Image.open(film_strip(frames, tmp_path / name, n_frames=5, **options)))[-24:]

    steps = captions("steps.png")
    low = captions("low.png", coverages=[[0.0, 0.1, 0.2, 0.3, 0.4]])
    high = captions("high.png", coverages=[[0.0, 0.1, 0.2, 0.3, 0.9]])
    assert (steps < 128).any()
    assert (low < 128).sum() > (steps < 128).sum()
    changed = np.flatnonzero((low != high).any(axis=(0, 2)))
    assert changed.min() >= 6 + 4 * 166  # only the last column's caption differs
    assert changed.max() < 6 + 5 * 166


def test_titles_are_drawn_above_their_rows(tmp_path):
    frames = [ramp(2), ramp(2)]
    first = np.asarray(Image.open(film_strip(frames, tmp_path / "a.png", 2, titles=["KNN", "none"])))
    other = np.asarray(Image.open(film_strip(frames, tmp_path / "b.png", 2, titles=["KNN", "assignment"])))
    changed = np.flatnonzero((first != other).any(axis=(1, 2)))
    second_row = 6 + 20 + 160 + 20 + 6
    assert second_row <= changed.min()
    assert changed.max() < second_row + 20


def test_frames_keep_their_proportions(tmp_path):
    path = film_strip([[plain(GREEN, 40, 80)] * 2], tmp_path / "strip.png", n_frames=2)
    strip = np.asarray(Image.open(path))
    green = (np.abs(strip.astype(int) - np.array(GREEN)) < 10).all(axis=-1)
    rows = np.flatnonzero(green[:, 6 + 80])
    assert len(rows) == pytest.approx(80, abs=2)
    assert green[rows.mean().astype(int), 8:160].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames_per_episode": []}, "frames_per_episode is empty"),
        ({"frames_per_episode": [ramp(3), []]}, r"frames_per_episode\[1\] is empty"),
        ({"frames_per_episode": [[np.zeros((4, 4), np.uint8)]]}, r"frames_per_episode\[0\]\[0\] must be"),
        ({"n_frames": 1}, "n_frames must be at least 2, got 1"),
        ({"cell_size": 20}, "cell_size must be at least 140, got 20"),
        ({"titles": ["a", "b"]}, "titles has 2 lines for 1 episodes"),
        ({"coverages": [[0.1, 0.2]]}, r"coverages must have a value a frame: lengths \[3\], got \[2\]"),
        ({"coverages": []}, r"coverages must have a value a frame: lengths \[3\], got \[\]"),
        ({"path": "strip.jpg"}, r"path must end in \.png"),
    ],
)
def test_bad_strip_input(tmp_path, options, message):
    arguments = {"frames_per_episode": [ramp(3)], "path": "strip.png", **options}
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        film_strip(**arguments)
    assert only_file(tmp_path) == []
