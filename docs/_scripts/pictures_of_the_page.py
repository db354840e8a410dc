"""Make the pictures of the page: `docs/images/page.png` and `page-on-a-phone.png`.

Run it from anywhere: `python docs/_scripts/pictures_of_the_page.py`. It streams a simulated growth to a local server,
and looks at its page with Debian's Chromium. Needs the extras `demo` and `test-integration`, and the program
`chromium`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from bluesky import RunEngine
from playwright.sync_api import sync_playwright

from atomscale_bluesky import AtomscaleCallback, Settings
from atomscale_bluesky.server import LocalServer
from atomscale_bluesky.sim import QUICK, SimulatedChamber, grow

OUT = Path(__file__).parents[1] / "images"


def picture(browser: Any, url: str, name: str, *, width: int, height: int, scheme: str, stream: bool) -> None:
    """Take one picture of the page."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1.5
    )
    page = context.new_page()
    page.goto(url)
    page.locator("#streams li").nth(1).wait_for()
    if stream:
        page.locator("#streams a").first.click()
        page.locator("figure canvas").nth(2).wait_for()
    page.wait_for_timeout(1200)  # the last answer is drawn
    page.screenshot(path=str(OUT / name))


def main() -> int:
    """Make all pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("there is no chromium; on Debian, `apt install chromium`", file=sys.stderr)
        return 1
    with LocalServer(port=8042) as server, tempfile.TemporaryDirectory() as spool:
        settings = Settings(
            endpoint=server.url, api_key=server.api_key, spool_dir=spool, points_per_chunk=20, announce="off",
            channels=("*", "!chamber_pressure", "!*set_point", "!*flux", "!substrate_heater_power"),
        )  # fmt: skip
        callback = AtomscaleCallback(settings=settings)
        engine = RunEngine({"synth_source_id": 42}, context_managers=[])
        engine.subscribe(callback)
        for sample in ("W1233", "W1234"):
            with SimulatedChamber(speed=60.0) as chamber:
                engine(grow(chamber, QUICK, {"physical_sample": sample}, period_s=0.01))
        callback.drain(30.0)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            picture(browser, server.url, "page.png", width=1000, height=860, scheme="light", stream=True)
            picture(browser, server.url, "page-on-a-phone.png", width=390, height=760, scheme="dark", stream=False)
            browser.close()
        callback.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
