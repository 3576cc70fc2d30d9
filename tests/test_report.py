"""The report, read back by an HTML parser, and once opened in a real browser."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import web
from PIL import Image
from sklearn import metrics as sklearn_metrics

from jax_noisy_anogan.evaluation import metrics, pixel_metrics
from jax_noisy_anogan.evaluation.operating import Found, OperatingPoint, SetBy
from jax_noisy_anogan.evaluation.report import write_report
from jax_noisy_anogan.evaluation.selection import Report, ReportImage, ScoreSummary, select_images

HOSTILE = "\"><script>alert('1')</script>&amp;<img src=x onerror=y>.png"


def _image(path, score, is_abnormal, *, side=24, seed=0):
    picture = np.random.default_rng(seed).integers(0, 255, (side, side, 1), dtype=np.uint8)
    mask = np.zeros((side, side), bool)
    mask[2:5, 3:9] = is_abnormal
    return ReportImage(
        path=path,
        score=score,
        is_abnormal=is_abnormal,
        is_flagged=score > 0.5,
        image=picture,
        class_name="dent" if is_abnormal else "good",
        terms={"residual": 12.345678, HOSTILE: 2.0},
        reconstruction=255 - picture,
        heatmap=np.repeat(picture, 3, axis=-1),
        mask=mask,
    )


def _report(**changes):
    rng = np.random.default_rng(0)
    is_abnormal = np.arange(60) < 20
    scores = rng.normal(0.3, 0.2, 60) + 0.5 * is_abnormal
    names = np.where(is_abnormal, np.where(np.arange(60) % 2, "scratch", "dent"), "good")
    found = metrics.image_metrics(scores, is_abnormal, threshold=0.5)
    intervals = metrics.image_intervals(scores, is_abnormal, threshold=0.5, seed=0, resamples=50)
    values = {
        "title": f"Report of {HOSTILE}",
        "subtitle": "images of one tray",
        "scores": scores,
        "is_abnormal": is_abnormal,
        "threshold": 0.5,
        "operating_points": [
            OperatingPoint(0.001, 999, 60, None, Found(0, 0), Found(0, 20), Found(0, 40)),
            OperatingPoint(0.05, 19, 60, 0.625, Found(2, 5), Found(11, 20), Found(3, 40)),
        ],
        "set_by": None,
        "summaries": [
            ScoreSummary("anomaly", found, intervals),
            ScoreSummary("residual", found._replace(auroc=0.123456), intervals),
        ],
        "class_names": names.tolist(),
        "settings": {"loss": {"gamma": 0.1, "objective": HOSTILE}, "train": {"seed": 17}},
        "pixel_intervals": None,
        "pixel": pixel_metrics.PixelResult(0.98765, 0.87654, 0.0, 0.0, 60, 20),
        "pixel_by_class": {"dent": pixel_metrics.PixelResult(0.76543, 0.65432, 0.0, 0.0, 50, 10)},
        "false_negatives": [_image(HOSTILE, 0.25, True)],
        "false_positives": [_image("tray/7.png", 0.75, False)],
        "most_anomalous": [_image("tray/8.png", 1.5, True)],
        "least_anomalous": [_image("tray/9.png", 0.0625, False)],
        "hottest": 8.0,
        "yardsticks": {},
        "notice": "",
        "failures": {HOSTILE: "truncated <b>"},
    }
    return Report(**(values | changes))


def _read(tmp_path, report):
    write_report(tmp_path / "report.html", report)
    return web.read(tmp_path / "report.html")


def _table(page, section):
    """The section's first table, cell by cell, headings first."""
    text = page.read_text()
    text = text[text.index(f'<section id="{section}">') :]
    table = ElementTree.fromstring(text[text.index("<table") : text.index("</table>") + 8])
    return [[" ".join(cell.itertext()).strip() for cell in row] for row in table.iter("tr")]


def _lines(reader):
    """The points of every path by its CSS class; (0, 0) and (1, 1) are corners of the frame."""
    found = {}
    for style, path in zip(reader.values("path", "class"), reader.values("path", "d"), strict=True):
        if " L" in path:
            points = np.array([point.split() for point in path[1:].split(" L")], float)
            found.setdefault(style, []).append((points - [52, 254]) / [354, -242])
    return found


def test_every_section_and_its_numbers_are_there(tmp_path):
    report = _report()
    reader, values = _read(tmp_path, report), report.summaries[0].metrics
    texts = reader.texts
    assert [*texts][1:] == [
        "summary",
        "scores",
        "operating",
        "curves",
        "defects",
        "misses",
        "most",
        "least",
        "failures",
        "settings",
    ]
    assert reader.values("a", "href") == [f"#{name}" for name in list(texts)[1:]]
    low, high = report.summaries[0].intervals.auroc
    for number in (values.auroc, values.average_precision, values.f1_at_threshold, 0.98765):
        assert f"{number:.3f}" in texts["summary"]
    assert f"{low:.3f} – {high:.3f}" in texts["summary"]
    flagged = report.scores > 0.5
    wrong = [np.sum(report.is_abnormal & ~flagged), np.sum(~report.is_abnormal & flagged)]
    assert min(wrong) > 0
    for expected in ("needs 999 normals, has 60", "0.625", "2 of 5", "11 of 20", "3 of 40"):
        assert expected in texts["operating"]
    assert f"1 of {wrong[0]} shown, lowest score first" in texts["misses"]
    assert f"1 of {wrong[1]} shown, highest score first" in texts["misses"]
    misses = texts["misses"]
    assert misses.index(HOSTILE) < misses.index("tray/7.png")
    assert misses.index("missed") < misses.index("false alarm")
    for expected in ("0.25", "≤ 0.5", "0.75", "> 0.5", "residual", "12.35", "normal: good"):
        assert expected in misses
    assert "tray/8.png" in texts["most"]
    assert "found" in texts["most"]
    assert "tray/9.png" in texts["least"]
    for expected in ("loss", "gamma", "0.1", "train", "seed", "17"):
        assert expected in texts["settings"].split("\n")


def _areas(report, chosen):
    """AUROC and average precision of the chosen images."""
    functions = sklearn_metrics.roc_auc_score, sklearn_metrics.average_precision_score
    return [f"{f(report.is_abnormal[chosen], report.scores[chosen]):.3f}" for f in functions]


def test_the_row_of_a_kind_holds_its_own_figures(tmp_path):
    report = _report()
    reader, flagged = _read(tmp_path, report), report.scores > 0.5
    rows, widths = [], []
    for name, of_pixels in {"dent": ["0.765", "0.654"], "scratch": ["–", "–"]}.items():
        of_kind = np.array(report.class_names) == name
        count, hits = of_kind.sum(), flagged[of_kind].sum()
        assert 0 < hits != count / 2
        of_images = _areas(report, of_kind | ~report.is_abnormal)
        rows.append([name, str(count), str(hits), *of_images, *of_pixels])
        widths.append(f"width:{100 * hits / count:.0f}%")
    heads = ["kind", "images", "flagged", "AUROC", "average precision", "pixel AUROC", "AUPRO"]
    assert _table(tmp_path / "report.html", "defects") == [heads, *rows]
    assert [style for style in reader.values("i", "style") if "width" in style] == widths


def test_the_row_of_a_score_holds_each_figure_under_its_name(tmp_path):
    report = _report()
    _read(tmp_path, report)
    truth, scores = report.is_abnormal, report.scores
    f1 = [sklearn_metrics.f1_score(truth, scores > above) for above in (0.5, *scores)]
    values = [*_areas(report, slice(None)), f"{max(f1):.3f}", f"{f1[0]:.3f}"]
    assert len(set(values)) == 4
    ranges = [f"{low:.3f} – {high:.3f}" for low, high in report.summaries[0].intervals]
    row = [" ".join(pair) for pair in zip(values, ranges, strict=True)]
    assert _table(tmp_path / "report.html", "scores") == [
        ["score", "AUROC", "average precision", "best F1", "F1 at threshold", "threshold"],
        ["anomaly", *row, "0.5"],
        ["residual", f"0.123 {ranges[0]}", *row[1:], "0.5"],
    ]


def test_the_row_of_a_truth_counts_its_own_images(tmp_path):
    report = _report()
    _read(tmp_path, report)
    flagged, rows = report.scores > 0.5, []
    for name, there in (("abnormal", report.is_abnormal), ("normal", ~report.is_abnormal)):
        hits, passed = np.sum(there & flagged), np.sum(there & ~flagged)
        wrong = passed if name == "abnormal" else hits
        assert 0 < wrong < there.sum()
        numbers = there.sum(), hits, passed, f"{flagged[there].mean():.1%}", wrong
        rows.append([name, *map(str, numbers)])
    heads = ["truth", "images", "flagged", "passed", "flagged rate", "wrong"]
    assert _table(tmp_path / "report.html", "summary") == [heads, *rows]


def test_curves_and_bars_are_those_of_the_scores(tmp_path):
    report = _report()
    reader, truth, scores = _read(tmp_path, report), report.is_abnormal, report.scores
    lines = _lines(reader)
    roc, steps = lines["curve"]
    false, true, _ = sklearn_metrics.roc_curve(truth, scores)
    np.testing.assert_allclose(roc, np.transpose([false, true]), atol=1e-3)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(truth, scores)
    corners = np.transpose([recall, precision])[:-1]
    assert np.abs(corners[:, None] - steps).max(axis=-1).min(axis=1).max() < 1e-3
    area = sklearn_metrics.average_precision_score(truth, scores)
    assert np.trapezoid(steps[:, 1], steps[:, 0]) == pytest.approx(area, abs=1e-3)
    names = ["false-positive rate", "true-positive rate", "recall", "precision"]
    assert [text for text in reader.texts["curves"].split("\n") if text in names] == names

    bins = int(2 * 60**0.5)
    edges = np.linspace(scores.min(), scores.max(), bins + 1)
    kinds = {"area normal": scores[~truth], "area abnormal": scores[truth]}
    wanted = np.array([np.histogram(of, edges)[0] / len(of) for of in kinds.values()])
    middles = (np.arange(bins) + 0.5) / bins
    drawn = np.array([np.interp(middles, *lines[kind][0].T) for kind in kinds])
    np.testing.assert_allclose(drawn / drawn.max(), wanted / wanted.max(), atol=2e-3)


def test_a_badge_is_bad_where_the_decision_was_wrong(tmp_path):
    _read(tmp_path, _report())
    found = re.findall(r'"badge (\w+)">([a-z ]+)<', (tmp_path / "report.html").read_text())
    wrong = [("bad", "missed"), ("bad", "false alarm")]
    assert found == [*wrong, ("good", "found"), ("good", "passed")]


def test_user_text_is_shown_and_never_obeyed(tmp_path):
    reader = _read(tmp_path, _report())
    assert "script" not in reader.tags
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    for section in ("misses", "failures", "settings"):
        assert HOSTILE in reader.texts[section]
    assert "truncated <b>" in reader.texts["failures"]
    assert f"Report of {HOSTILE}" in reader.texts[""]
    assert f"input of {HOSTILE}" in reader.values("img", "alt")


def test_a_file_name_that_is_no_text_can_be_written(tmp_path):
    reader = _read(tmp_path, _report(false_negatives=[_image("bad\udcff.png", 0.1, True)]))
    assert "bad\\udcff.png" in reader.texts["misses"]


def test_the_file_needs_nothing_beside_it(tmp_path):
    reader = _read(tmp_path, _report(title="plain", failures={}))
    text = (tmp_path / "report.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in reader.style
    assert "@import" not in reader.style
    assert set(reader.tags).isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    assert all(value.startswith("data:image/") for value in reader.values("img", "src"))
    assert all(value.startswith("#") for value in reader.values("a", "href"))


def _embedded(reader):
    return {
        alt: Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))
        for alt, source in zip(
            reader.values("img", "alt"), reader.values("img", "src"), strict=True
        )
    }


def test_small_pictures_are_embedded_exactly(tmp_path):
    found = _embedded(_read(tmp_path, _report()))
    image = _image("tray/8.png", 1.5, True)
    np.testing.assert_array_equal(
        np.asarray(found["reconstruction of tray/8.png"])[..., :1], image.reconstruction
    )
    outlined = np.asarray(found["true mask of tray/8.png"])
    np.testing.assert_array_equal(outlined[2:5, 3:9, :1], image.image[2:5, 3:9])
    assert (outlined[1, 2:10] == (255, 64, 64)).all()
    assert "true mask of tray/7.png" not in found


def test_large_pictures_are_bounded_and_show_the_region_at_full_resolution(tmp_path):
    corner = _image("corner", 1.4, True, side=800)
    corner.mask[:] = False
    corner.mask[100:110, 790:] = True
    large = [_image("known", 1.5, True, side=800), corner]
    found = _embedded(_read(tmp_path, _report(most_anomalous=large)))
    assert max(max(image.size) for image in found.values()) == 360
    assert (tmp_path / "report.html").stat().st_size < 1_500_000
    for name, top, left in (("known", 0, 0), ("corner", 57, 704)):
        expected = large[0].image[top : top + 96, left : left + 96]
        shown = np.asarray(found[f"detail at the mask of {name}"])
        np.testing.assert_array_equal(shown[..., :1], expected)


def test_the_marks_on_the_curves_are_the_rates_at_the_threshold(tmp_path):
    report = _report()
    reader, flagged = _read(tmp_path, report), report.scores > 0.5
    true = flagged[report.is_abnormal].mean()
    expected = [
        (flagged[~report.is_abnormal].mean(), true),
        (true, report.is_abnormal[flagged].mean()),
    ]
    circles = zip(reader.values("circle", "cx"), reader.values("circle", "cy"), strict=True)
    for (x, y), rates in zip(circles, expected, strict=True):
        # Corners of the drawing area: (52, 254) is (0, 0), (406, 12) is (1, 1).
        found = (float(x) - 52) / 354, (254 - float(y)) / 242
        assert found == pytest.approx(rates, abs=1e-3)


def test_outliers_do_not_squeeze_the_histogram(tmp_path):
    is_abnormal = np.arange(200) < 50
    scores = np.linspace(0, 1, 200)
    scores[0] = 1e6
    changes = {"scores": scores, "is_abnormal": is_abnormal, "class_names": ["dent"] * 200}
    reader = _read(tmp_path, _report(**changes))
    assert "last bar: and above" in reader.texts["curves"]
    areas = [d for d in reader.values("path", "d") if d.count("L") > 20]
    normal = np.array([point.split() for point in areas[0][1:].split(" L")], float)
    assert np.ptp(normal[normal[:, 1] < 254][:, 0]) > 200


def test_normal_images_alone_make_a_report_without_curves(tmp_path):
    scores, is_abnormal = np.zeros(4), np.zeros(4, bool)
    found = metrics.image_metrics(scores, is_abnormal, threshold=0.5)
    unknown = metrics.image_intervals(scores, is_abnormal, threshold=0.5, seed=0)
    report = _report(
        scores=scores,
        is_abnormal=is_abnormal,
        summaries=[ScoreSummary("anomaly", found, unknown)],
        class_names=["good"] * 4,
    )
    texts = _read(tmp_path, report).texts
    assert "Curves need normal and abnormal images" in texts["curves"]
    assert "nan" not in "".join(texts.values())
    assert "defects" not in texts


def test_contradictions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="anomaly is not among the summaries"):
        write_report(tmp_path / "report.html", _report(summaries=[]))
    with pytest.raises(ValueError, match="3 scores for 60 labels"):
        write_report(tmp_path / "report.html", _report(scores=np.zeros(3)))
    with pytest.raises(ValueError, match="all of them finite"):
        write_report(tmp_path / "report.html", _report(scores=np.full(60, np.nan)))


def test_the_worst_misses_come_first_and_no_image_twice():
    scores = np.array([0.9, 0.1, 0.4, 0.8, 0.7, 0.2, 0.3])
    is_abnormal = np.array([True, True, True, False, False, False, False])
    found = select_images(scores, is_abnormal, threshold=0.5, misses=2, extremes=2)
    assert [group.tolist() for group in found] == [[1, 2], [3, 4], [0, 6], [5]]
    found = select_images(scores, is_abnormal, threshold=0.5, misses=1, extremes=0)
    assert [group.tolist() for group in found] == [[1], [3], [], []]


@web.needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_complaint(tmp_path, width):
    long = "unbroken" * 40
    report = _report(
        title=long,
        false_positives=[_image(long, 0.75, False)],
        failures={long: long},
        settings={"data": {"root": long}},
        class_names=[long] * 60,
    )
    write_report(tmp_path / "report.html", report)
    pixels = web.photographed(tmp_path / "report.html", width, tmp_path)
    blue, red = np.array([0x2F, 0x6F, 0xB5]), np.array([0xC8, 0x37, 0x4D])
    for colour in (blue, red):
        assert (np.abs(pixels - colour).max(axis=-1) < 8).sum() > 100


def test_the_part_that_sets_the_threshold_stands_below_the_operating_points(tmp_path):
    reader = _read(tmp_path, _report(set_by=SetBy(HOSTILE, 3, 0.125)))
    told = reader.texts["operating"]
    assert f"{HOSTILE} and 2 more of the same part set the threshold alone" in told
    assert "an anomaly of 0.12;" in told
    assert "alone" not in _read(tmp_path, _report()).texts["operating"]


def test_what_beats_the_run_stands_above_the_title(tmp_path):
    report = _report(
        notice="Simple <b> yardsticks do better",
        yardsticks={"nearest patch": {"auroc": 0.8125, "pixel_auroc": float("nan")}},
    )
    _read(tmp_path, report)
    page = (tmp_path / "report.html").read_text()
    first = page.index("Simple &lt;b&gt; yardsticks do better")
    assert page.index("<header>") < first < page.index("<h1>")
    section = page[page.index('<section id="yardsticks">') :]
    assert section.index("nearest patch") < section.index("0.812") < section.index("</section>")
    _read(tmp_path, _report())
    quiet = (tmp_path / "report.html").read_text()
    assert 'class="notice"' not in quiet
    assert 'id="yardsticks"' not in quiet
