"""The console in a real headless Chromium: no other host, no error, hostile texts inert, a phone's width."""

import json
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import uvicorn

from serving import console
from serving.app import Parts, create_app
from settings import Settings
from tests import histories

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sockets = pytest.importorskip("websockets.sync.client")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


class Browser:
    """One page of a headless Chromium, driven by the DevTools protocol; `asked` are the URLs that it requested."""

    def __init__(self, folder):
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        command = [CHROMIUM, *flags, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = wait_for(lambda: (folder / "DevToolsActivePort").read_text().split()[0], 90)
        self.asked, self.problems, self.number = [], [], 0
        target = wait_for(lambda: page_of(port), 30)
        self.socket = sockets.connect(target, max_size=None)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self.socket.recv(60))
            if said.get("id") == self.number:
                return said["result"]
            if said["method"] == "Network.requestWillBeSent":
                self.asked.append(said["params"]["request"]["url"])
            if said["method"] in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                self.problems.append(said["params"])

    def run(self, expression: str):
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        return self.send("Runtime.evaluate", **asked)["result"].get("value")

    def open(self, url: str, width: int, until: str) -> str:
        """The text of the page at `url` once the expression `until` is true."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=url)
        wait_for(lambda: self.run(until) or None, 60)
        return self.run("document.body.innerText")

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)


def page_of(port: str) -> str:
    import httpx

    targets = httpx.get(f"http://127.0.0.1:{port}/json", trust_env=False).json()
    return next(one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page")


def wait_for(look, seconds: float):
    """What `look` gives as soon as it gives something; what it raises last when it never does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if (found := look()) is not None:
                return found
            problem = TimeoutError(f"nothing after {seconds:g} s")
        except Exception as error:
            problem = error
        if time.monotonic() > deadline:
            raise problem
        time.sleep(0.1)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    home = tmp_path_factory.mktemp("console")
    ledger, log = histories.filled(home)
    router = SimpleNamespace(keys={}, read_at=0.0, age=0.0)
    parts = Parts(router, None, None, None, log, None, ledger)
    app = create_app(parts, Settings(home=home, api_key=None), "t", ThreadPoolExecutor(1))
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.MonkeyPatch.context() as patched:
        patched.setattr(console, "KEEP_S", 0.0)  # so that each look is a new one
        patched.setattr(console, "SHARE", 1.0)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)
    log.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


BUILT = "document.querySelectorAll('#content section').length > 0"
VIEWS = {
    "": "healthy|alarm",
    "#/handbook": "Timeline",
    "#/handbook/remedy-2": "What the gate saw",
    "#/new": "No release",
}


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("path", VIEWS)
def test_each_page_is_built_without_an_error_within_the_width_and_from_this_host_alone(address, browser, path, width):
    text = browser.open(f"{address}/console{path}", width, BUILT)
    assert any(word in text for word in VIEWS[path].split("|"))
    assert browser.problems == []
    assert browser.run("document.documentElement.scrollWidth") <= width, "it would scroll sideways"
    assert {url.split("/console")[0].split("/v1")[0] for url in browser.asked} <= {address, "about:blank", "data:,"}
    assert browser.run("document.title") != "owned" and browser.run("document.querySelectorAll('main img').length") == 0
    unnamed = "[...document.querySelectorAll('a, button, select, input, svg[role=img], summary')].filter(one =>"
    unnamed += " !(one.textContent.trim() || one.labels?.length || one.ariaLabel)).length"
    assert browser.run(unnamed) == 0, "every control and picture has a name"


@pytest.mark.parametrize("path", ["#/handbook", "#/handbook/remedy-1"])
def test_a_refresh_leaves_what_is_open_and_in_focus_as_it_is(address, browser, path):
    browser.open(f"{address}/console{path}", 1280, BUILT)
    browser.run("window.kept = document.querySelector('#content svg'); document.querySelector('details').open = true")
    browser.run("document.querySelector('#content a').focus(); load()")
    assert browser.run("window.kept.isConnected && document.querySelector('details').open")
    assert browser.run("document.activeElement.tagName") == "A"
