"""The report as a person opens it: headless Chromium, both widths, both colour schemes, hostile text inside."""

import io
import struct
import zlib

import pytest

from tailor_ray.observe.report import write_comparison, write_report
from tailor_ray.storage import Store
from tests.observe.browser import CHROMIUM, Browser
from tests.observe.runs import make_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

VIEWS = [(1600, False), (1600, True), (400, False), (400, True)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports of a finished and an unfinished run, and the page that compares them."""
    base = tmp_path_factory.mktemp("pages")
    runs = [make_run(base / "demo"), make_run(base / "other", rounds=2, base=-1, lift=0.0, last_stage="teach")]
    for run in runs:
        write_report(run)
    write_comparison(runs, Store.open(str(base)))
    return {"report": base / "demo/report/index.html", "zero": base / "other/report/index.html"} | {
        "comparison": base / "comparison.html"
    }


def colors_of(png: bytes) -> set[bytes]:
    """The distinct pixels of every 7th row of an 8-bit PNG without interlacing (and with row filters left in)."""
    stream = io.BytesIO(png[8:])
    data, width, channels = b"", 0, 3
    while header := stream.read(8):
        length, kind = struct.unpack(">I4s", header)
        body = stream.read(length)
        stream.read(4)
        if kind == b"IHDR":
            width, _, _, color = struct.unpack(">IIBB", body[:10])
            channels = {2: 3, 6: 4}[color]
        elif kind == b"IDAT":
            data += body
    raw = zlib.decompress(data)
    stride = width * channels + 1
    return {
        raw[at : at + channels]
        for row in range(0, len(raw), stride * 7)
        for at in range(row + 1, row + stride, channels)
    }


@pytest.mark.parametrize("name", ["report", "zero", "comparison"])
async def test_pages_draw_without_errors_or_requests(pages, tmp_path, name):
    async with Browser(tmp_path) as browser:
        backgrounds = set()
        for width, dark in VIEWS:
            page = await browser.page()
            await page.open(pages[name], width, dark)
            assert page.errors == []
            assert page.requests == [pages[name].as_uri()]
            assert await page.evaluate("window.hacked") is None
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            boxes = await page.evaluate(
                "[...document.querySelectorAll('.chart')].map(host => { const box = host.getBoundingClientRect();"
                " return [box.width, box.height, host.querySelectorAll('path, rect.fill').length, box.right] })"
            )
            assert len(boxes) >= 5
            for wide, high, shapes, right in boxes:
                assert wide > 200
                assert high > 40
                assert shapes > 0
                assert right <= width
            backgrounds.add(await page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert len(colors_of(await page.screenshot())) > 8
        assert len(backgrounds) == 2  # light and dark differ


async def test_mistakes_are_searched_filtered_and_paged(pages, tmp_path):
    async with Browser(tmp_path) as browser:
        page = await browser.page()
        await page.open(pages["report"], 1600, dark=False)
        rows = "[...document.querySelectorAll('#mistake-rows tr')].map(row => row.innerText)"
        count = "document.getElementById('mistake-count').textContent"
        first = await page.evaluate(rows)
        assert len(first) == 10
        assert "</script><script>window.hacked = 1" in first[0]
        await page.evaluate("document.getElementById('mistake-next').click()")
        second = await page.evaluate(rows)
        assert len(second) == 10
        assert not set(first) & set(second)
        assert "page 2 of" in await page.evaluate(count)

        choose = (
            "((id, value, event) => { const one = document.getElementById(id); one.value = value;"
            " one.dispatchEvent(new Event(event)) })"
        )
        await page.evaluate(f"{choose}('mistake-search', 'TRAIN-0012', 'input')")
        found = await page.evaluate(rows)
        assert found
        assert all("train-0012" in row for row in found)
        assert await page.evaluate("document.querySelectorAll('#mistake-rows mark').length") > 0
        await page.evaluate(f"{choose}('mistake-search', '', 'input')")
        await page.evaluate(f"{choose}('mistake-round', '2', 'change')")
        await page.evaluate(f"{choose}('mistake-change', 'fixed', 'change')")
        fixed = await page.evaluate(rows)
        assert fixed
        assert all("fixed" in row and "round 2" in row for row in fixed)
        assert "You added the sample number" in fixed[0]
        await page.evaluate(f"{choose}('mistake-search', 'no such words', 'input')")
        assert await page.evaluate(rows) == ["Nothing matches."]
        assert page.errors == []


async def test_a_tip_tells_the_numbers_under_the_pointer(pages, tmp_path):
    async with Browser(tmp_path) as browser:
        page = await browser.page()
        await page.open(pages["report"], 1600, dark=True)
        middle = await page.evaluate(
            "(() => { const box = document.querySelector('[data-chart=accuracy] svg').getBoundingClientRect();"
            " return [box.left + box.width - 40, box.top + box.height / 2] })()"
        )
        await page.call("Input.dispatchMouseEvent", type="mouseMoved", x=middle[0], y=middle[1])
        tip = await page.evaluate("document.getElementById('tip').textContent")
        assert tip.startswith("Round 3\ntest: ")
        assert "/200" in tip
        assert page.errors == []
