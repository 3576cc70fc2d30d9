"""The gallery of scored files: order, pages, links, failures, and bounded size."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import web

from jax_noisy_anogan import pictures
from jax_noisy_anogan.evaluation import gallery
from jax_noisy_anogan.evaluation.gallery import write_gallery
from jax_noisy_anogan.scoring.files import safe_name

HOSTILE = "\"><script>alert('1')</script>&amp;<img src=x onerror=y>.png"


def _table(out, count, failed=(), names=None):
    """A table as `score` writes it; file k has the anomaly k / count."""
    out.mkdir(exist_ok=True)
    names = names or [f"tray/{k:05d}.png" for k in range(count)]
    values = np.arange(count) / count
    none = [None] * len(failed)
    columns = {
        "path": [*names, *(path for path, _ in failed)],
        "calibrated": [*(10 * values - 5), *none],
        "anomaly": [*values, *none],
        "decision": [*np.where(values > 0.9, "abnormal", "normal").tolist(), *none],
        "error": [*([None] * count), *(error for _, error in failed)],
    }
    types = {"calibrated": pa.float64(), "anomaly": pa.float64()}
    arrays = {name: pa.array(v, types.get(name, pa.string())) for name, v in columns.items()}
    # Not in the order of the scores.
    table = pa.table(arrays).take(np.random.default_rng(0).permutation(count + len(failed)))
    pyarrow.parquet.write_table(table, out / "scores.parquet")


def _captions(page):
    return [line for line in web.read(page).texts["files"].split("\n") if "tray/" in line]


def test_pages_hold_every_file_once_the_most_anomalous_first(tmp_path):
    _table(tmp_path, 1203, failed=[("bad.png", "not an image")])
    assert write_gallery(tmp_path, threshold=0.9) == tmp_path / "gallery.html"
    pages = [tmp_path / f"gallery{end}.html" for end in ("", "-2", "-3")]
    assert sorted(tmp_path.glob("*.html")) == sorted(pages)
    shown = [line.split()[-1] for page in pages for line in _captions(page)]
    assert shown == [f"tray/{k:05d}.png" for k in range(1202, -1, -1)]
    first = web.read(pages[0])
    tiles = first.texts["summary"].split()
    assert [tiles[tiles.index(name) + 1] for name in ("files", "abnormal", "normal")] == [
        "1,204",
        "120",
        "1,083",
    ]
    assert "bad.png" in first.texts["failures"]
    assert "not an image" in first.texts["failures"]
    assert "failures" not in web.read(pages[1]).texts


def test_a_page_links_its_neighbours_and_both_ends_and_the_chart_is_drawn_once(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(gallery, "_PER_PAGE", 2)
    charts = []

    def drawn(*args, histogram=gallery._histogram):
        charts.append(histogram(*args))
        return charts[-1]

    monkeypatch.setattr(gallery, "_histogram", drawn)
    _table(tmp_path, 14)
    write_gallery(tmp_path, threshold=0.9)
    wanted = {1: "1 2 … 7", 2: "1 2 3 … 7", 4: "1 … 3 4 5 … 7", 7: "1 … 6 7"}
    for number, numbers in wanted.items():
        reader = web.read(tmp_path / (f"gallery-{number}.html" if number > 1 else "gallery.html"))
        _, navigation = reader.texts[""].split("most anomalous first\n")
        assert navigation.replace("page", "").split() == numbers.split()
        links = [link for link in reader.values("a", "href") if link.startswith("gallery")]
        others = [int(k) for k in numbers.split() if k not in ("…", str(number))]
        assert links == [f"gallery-{k}.html" if k > 1 else "gallery.html" for k in others]
        assert "svg" in reader.tags
    assert len(charts) == 1


def test_pages_of_an_earlier_start_with_more_files_go(tmp_path):
    _table(tmp_path, 1001)
    write_gallery(tmp_path, threshold=0.9)
    _table(tmp_path, 10)
    write_gallery(tmp_path, threshold=0.9)
    assert [path.name for path in tmp_path.glob("*.html")] == ["gallery.html"]


def test_pictures_are_linked_where_they_exist_and_loaded_when_they_come_into_view(tmp_path):
    names = ["tray/a.png", HOSTILE]
    _table(tmp_path, 2, names=names)
    for folder in ("thumbnails", "heatmaps"):
        (tmp_path / folder).mkdir()
    large = np.zeros((640, 480, 3), np.uint8)
    pictures.save_thumbnail(tmp_path / "thumbnails" / f"{safe_name(HOSTILE)}.jpg", large)
    pictures.save_png(tmp_path / "heatmaps" / f"{safe_name(HOSTILE)}.png", large)
    write_gallery(tmp_path, threshold=0.9)
    reader = web.read(tmp_path / "gallery.html")
    (source,) = reader.values("img", "src")
    assert (tmp_path / source).is_file()
    assert reader.values("img", "loading") == ["lazy"]
    assert reader.values("img", "alt") == [HOSTILE]
    (overlay,) = [link for link in reader.values("a", "href") if link != "scores.csv"]
    assert (tmp_path / overlay).is_file()
    assert "script" not in reader.tags
    assert "no picture" in reader.texts["files"]


def test_nothing_scored_is_a_page_too(tmp_path):
    _table(tmp_path, 0, failed=[("bad.png", "not an image")])
    write_gallery(tmp_path, threshold=0.5)
    reader = web.read(tmp_path / "gallery.html")
    assert "svg" not in reader.tags
    assert "bad.png" in reader.texts["failures"]


def test_thousands_of_files_need_little_memory(tmp_path):
    _table(tmp_path, 5000, failed=[(f"{k}.png", "cut off") for k in range(1000)])
    tracemalloc.start()
    write_gallery(tmp_path, threshold=0.9)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(list(tmp_path.glob("*.html"))) == 10
    assert max(path.stat().st_size for path in tmp_path.glob("*.html")) < 400_000
    assert peak < 20 * 2**20


@web.needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_gallery_and_its_pictures(tmp_path, width):
    names = ["unbroken" * 40, *(f"tray/{k}.png" for k in range(29))]
    _table(tmp_path, 30, failed=[("unbroken" * 40, "cut off")], names=names)
    (tmp_path / "thumbnails").mkdir()
    green = np.zeros((300, 200, 3), np.uint8)
    green[..., 1] = 200
    for name in names:
        pictures.save_thumbnail(tmp_path / "thumbnails" / f"{safe_name(name)}.jpg", green)
    pixels = web.photographed(write_gallery(tmp_path, threshold=0.9), width, tmp_path)
    # Cards in view: at least a dozen of them, each of 100 x 150 pixels and more.
    assert (np.abs(pixels - [0, 200, 0]).max(axis=-1) < 8).sum() > 12 * 100 * 150
