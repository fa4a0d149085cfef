"""The clip and a headless Chromium to look at its page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from viewer_cases import Page, make_clip

from emc_fast.viewer import write_html


@pytest.fixture
def clip() -> dict[str, Any]:
    return make_clip()


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser, control = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or control is None:
        pytest.skip("runs on a machine with Debian's packages chromium and chromium-driver, as CI's has")
    webdriver = pytest.importorskip("selenium.webdriver", reason="runs where the extra 'test' is installed, which brings selenium")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    flags = "headless=new no-sandbox disable-gpu disable-dev-shm-usage disable-quic no-first-run disable-background-networking"
    flags += f" disable-component-update disable-sync mute-audio window-size=1440,900 user-data-dir={tmp_path_factory.mktemp('chromium')}"
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(service=Service(control), options=options)
    yield session
    session.quit()


@pytest.fixture
def show(driver: Any, tmp_path: Path) -> Callable[..., Page]:
    """Write a page and open it: ``show(**arguments, width=1440, height=900, dark=False)``."""

    def open_page(*, width: int = 1440, height: int = 900, dark: bool = False, **arguments: Any) -> Page:
        path = write_html(tmp_path / "page.html", **arguments)
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        driver.get_log("browser")
        driver.get(path.as_uri())
        return Page(driver)

    return open_page
