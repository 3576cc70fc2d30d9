"""What tests of pages share: an HTML parser, and a real browser."""

import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

VOID = {"meta", "img", "path", "circle"}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


class Reader(HTMLParser):
    """Collects tags, attributes, and the text below each section's id."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.open, self.section = [], [], [], ""
        self.texts, self.style = {}, ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attributes)["id"]

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.texts[self.section] = self.texts.get(self.section, "") + data + "\n"

    def values(self, tag, name):
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def read(path):
    """The page's tags, attributes and texts; every tag is closed."""
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def photographed(page, width, folder):
    """RGB of the page in a window of `width` x 3000, which nothing is wider than."""
    shot = folder / "shot.png"
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars "
        "--disable-background-networking --disable-component-update --disable-sync "
        f"--enable-logging=stderr --window-size={width},3000 --user-data-dir={folder / 'profile'}"
    )
    done = subprocess.run(
        [BROWSER, *flags.split(), f"--screenshot={shot}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert pixels.shape == (3000, width, 3)
    # The margin stays free.
    assert len(np.unique(pixels[:, -8:].reshape(-1, 3), axis=0)) == 1
    return pixels
