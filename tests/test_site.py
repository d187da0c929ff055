"""The static site: built whole, then every page opened in a real browser, wide and narrow."""

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (1280, 390)  # pixels: a laptop, a telephone
OFFLINE = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going"]
    command += ["-c", str(ROOT / "site"), "-d", str(folder / "doctrees"), str(ROOT)]
    built = subprocess.run([*command, str(folder / "html")], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    return folder / "html"


def pages(site):
    return [
        path.relative_to(site).as_posix()
        for path in sorted(site.rglob("*.html"))
        if not {"_modules", "_static"} & set(path.parts)
    ]


def test_every_notebook_and_document_has_its_page(site):
    found = pages(site)
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{notebook.stem}.html" in found
    assert {"index.html", "README.html", "CONTRIBUTING.html", "site/reference.html"} <= set(found)
    assert "trimmed_backward" in (site / "site" / "reference.html").read_text()


def test_links_lead_somewhere_and_nothing_comes_from_another_host(site):
    broken, foreign = [], []
    for page in pages(site):
        text = (site / page).read_text()
        for link in re.findall(r'(?:href|src)="([^"#?]*)[^"]*"', text):
            if re.match(r"https?:|mailto:|data:", link):
                continue
            target = site / Path(page).parent / unquote(link)
            if link and not target.is_file():
                broken.append(f"{page}: {link}")
        foreign += re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(https?:[^"]*)"', text)
    assert broken == []
    assert foreign == []


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed here")
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_opens_in_a_browser(site, width):
    from playwright.sync_api import sync_playwright

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=OFFLINE)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda said: found.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: found.append(str(error)))
        for name in pages(site):
            before = len(found)
            page.goto(f"http://127.0.0.1:{server.server_port}/{name}")
            page.evaluate("for (const image of document.images) image.loading = 'eager'")
            page.evaluate(
                "Promise.all([...document.images].map(i => i.decode().catch(() => null)))"
            )
            absent = "[...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
            found += page.evaluate(absent)
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                found.append("wider than the window")
            found[before:] = [f"{name}: {text}" for text in found[before:]]
        browser.close()
    server.shutdown()
    assert found == []
