"""`make test-browser`: notebooks 02 and 05 in a real JupyterLab and a real Chromium, used as a person would.

On the bundled digits, so that it needs neither MNIST nor a network. Screenshots are left in $MNIST_AE_OUT/screenshots,
by default runs/screenshots. Skipped, with the reason, where there is no Chromium or Chrome.
"""

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import nbformat
import pytest

from mnist_ae import storage

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
NOTEBOOKS = sorted((storage.HOME / "notebooks").glob("*.ipynb"))
CELLS_TIMEOUT = 900  # seconds for all cells of a notebook; 05 trains

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed"),
]


@pytest.fixture(scope="module")
def screenshots():
    folder = storage.runs_folder() / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on loopback, over copies of the notebooks whose data set is the bundled digits."""
    folder = tmp_path_factory.mktemp("lab")
    for path in sorted((storage.HOME / "notebooks").glob("0[125]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = cell.source.replace('dataset = "auto"', 'dataset = "digits"')
                assert '"digits"' in cell.source
        nbformat.write(notebook, folder / path.name)
    environment = os.environ | {
        "MNIST_AE_OUT": str(folder / "out"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    subprocess.run(
        [sys.executable, "-m", "papermill", "--no-progress-bar", "01_train.ipynb", "01_done.ipynb"],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
    )
    with serving([sys.executable, "-m", "jupyter", "lab"], folder, environment, root_dir=str(folder)) as address:
        yield address


@contextmanager
def serving(command, folder, environment, **options):
    """A Jupyter server on loopback, configured by a file as a user would, its log in `folder`: the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options |= {"port": port, "ip": "127.0.0.1", "open_browser": False, "allow_root": True}
    never = {"news_url": "", "check_for_updates_class": "jupyterlab.NeverCheckForUpdate"}
    config = {"ServerApp": options, "IdentityProvider": {"token": ""}, "LabApp": never}
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / "jupyter_server_config.json").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=storage.HOME,
            env=environment | {"JUPYTER_CONFIG_DIR": str(folder / "config")},
            stdout=log,
            stderr=log,
            start_new_session=True,  # what make starts ends with make
        )
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5)
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        else:
            raise AssertionError((folder / "log").read_text())
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(lab, browser):
    """opened(notebook): its page, before anything runs; errors of the page itself are collected in page.errors."""
    pages = []

    def open_notebook(name):
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        pages.append(page)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(f"{lab}/lab/workspaces/{name[:2]}/tree/{name}")  # of its own: else the other notebook opens, too
        page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
        return page

    yield open_notebook
    for page in pages:
        page.close()


def run_all(page):
    """Run > Run All Cells once the kernel is there, and wait until no cell waits or runs."""
    busy = """() => document.querySelector(".jp-Notebook-ExecutionIndicator")?.dataset.status != "idle"
        || [...document.querySelectorAll(".jp-InputPrompt")].some(p => p.innerText.includes("[*]"))"""
    settle(page, busy, 120)  # idle for a moment only, while it connects, the kernel may lose what it is given
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_function(busy, timeout=60_000)
    settle(page, busy, CELLS_TIMEOUT)


def settle(page, busy, timeout):
    """Wait until the script `busy` has said false three times, a second apart: between two cells it may say so once."""
    deadline = time.monotonic() + timeout
    quiet = 0
    while quiet < 3:
        assert time.monotonic() < deadline, "the cells are still running"
        page.wait_for_timeout(1000)
        quiet = 0 if page.evaluate(busy) else quiet + 1


def errors(page):
    """What the cells say went wrong, and the errors of the page."""
    said = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
    return said + page.errors


def scroll_to(page, text):
    """Bring the cell whose source holds `text` into view: JupyterLab draws only what is near."""
    notebook = page.locator(".jp-WindowedPanel-outer").first
    notebook.hover()
    notebook.evaluate("panel => panel.scrollTo(0, 0)")
    for _ in range(200):
        cell = page.locator(".jp-CodeCell", has=page.locator(".jp-InputArea-editor", has_text=text)).first
        if cell.count() and cell.locator(".jp-OutputArea-output").count():
            cell.scroll_into_view_if_needed()
            page.wait_for_timeout(500)
            return cell
        page.mouse.wheel(0, 500)
        page.wait_for_timeout(100)
    raise AssertionError(f"no cell with {text!r} and an output is in sight")


def pixels(image):
    """What an <img> shows, as text."""
    return image.evaluate(
        """async img => {
            for (let tries = 0; ; tries++) {
                try {
                    await img.decode();
                    break;
                } catch (error) {  // a new image took the place of the one that was being read
                    if (tries == 50) throw error;
                    await new Promise(done => setTimeout(done, 10));
                }
            }
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [img.naturalWidth, img.naturalHeight];
            canvas.getContext("2d").drawImage(img, 0, 0);
            return canvas.toDataURL();
        }"""
    )


def changed(page, image, before):
    """Wait until the image shows something else than before."""
    begin = time.monotonic()
    while pixels(image) == before:
        assert time.monotonic() - begin < 10, "the image did not change"
        page.wait_for_timeout(5)


def move_a_slider(page):
    """Move the second of the ten sliders, step by step, and then all of them with a button: the drawing follows.

    Returns the seconds from a key press to another drawing on the page, the median of the steps.
    """
    cell = scroll_to(page, "explore.sliders(")
    drawing = cell.locator("img.widget-image")
    assert cell.locator(".noUi-handle").count() == 10
    handle = cell.locator(".noUi-handle").nth(1)
    handle.focus()
    seconds = []
    for _ in range(15):
        before, begin = pixels(drawing), time.monotonic()
        handle.press("ArrowUp")
        changed(page, drawing, before)
        seconds.append(time.monotonic() - begin)
    assert cell.locator(".widget-readout").nth(1).inner_text() == "0.15"
    before = pixels(drawing)
    cell.get_by_role("button", name="alone").nth(4).click()
    changed(page, drawing, before)
    return statistics.median(seconds)


def pick_an_image(page):
    cell = scroll_to(page, "explore.images(")
    shown = cell.locator("img.widget-image")
    assert shown.count() == 2  # the image and its drawing; its neighbours
    before = [pixels(shown.nth(k)) for k in range(2)]
    number = cell.locator("input[type=number]")
    number.fill("1")  # a 2, where number 0 is a 7: two images of one digit may well have the same drawing
    number.press("Enter")
    for k in range(2):
        changed(page, shown.nth(k), before[k])
    before = pixels(shown.nth(0))
    cell.get_by_role("button", name="another one").click()
    changed(page, shown.nth(0), before)


def test_make_lab_opens_the_notebooks_with_the_kernel_of_this_environment(browser, tmp_path, screenshots):
    own = {name: str(tmp_path / name) for name in ("JUPYTERLAB_WORKSPACES_DIR", "JUPYTER_RUNTIME_DIR")}
    with serving(["make", "lab", f"PYTHON={sys.executable}"], tmp_path, os.environ | own) as address:
        page = browser.new_page()
        page.goto(address)
        page.locator(".jp-DirListing-item", has_text="01_train.ipynb").wait_for(timeout=60_000)
        page.screenshot(path=screenshots / "make_lab.png")
        page.close()
        kernel = json.load(urllib.request.urlopen(f"{address}/api/kernelspecs"))
        assert kernel["default"] == "python3"
        assert kernel["kernelspecs"]["python3"]["spec"]["argv"][0] in ("python", sys.executable)
    stored = {nbformat.read(path, as_version=4).metadata.kernelspec.name for path in NOTEBOOKS}
    assert stored == {"python3"}


def test_02_runs_and_its_sliders_draw(opened, screenshots):
    page = opened("02_inspect_codes.ipynb")
    page.locator(".jp-RenderedImage img").first.wait_for(timeout=60_000)  # stored outputs show before anything runs
    page.screenshot(path=screenshots / "02_opened.png")
    run_all(page)
    assert errors(page) == []
    seconds = move_a_slider(page)
    print(f"the drawing followed a slider after {seconds:.3f} s, browser and network included")
    assert seconds < 0.5
    page.screenshot(path=screenshots / "02_sliders.png")
    pick_an_image(page)
    page.screenshot(path=screenshots / "02_images.png")
    assert errors(page) == []


def test_05_runs_and_answers_the_hand(opened, screenshots):
    page = opened("05_ten_digits.ipynb")
    run_all(page)
    assert errors(page) == []
    move_a_slider(page)
    page.screenshot(path=screenshots / "05_sliders.png")
    pick_an_image(page)
    page.screenshot(path=screenshots / "05_images.png")

    cell = scroll_to(page, "explore.paint(")
    canvas, shown = cell.locator("canvas"), cell.locator("img.widget-image")
    before = pixels(shown)
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 70, box["y"] + 60)
    page.mouse.down()
    for x, y in [(200, 60), (160, 140), (120, 230)]:
        page.mouse.move(box["x"] + x, box["y"] + y, steps=8)
    page.mouse.up()
    changed(page, shown, before)
    page.wait_for_timeout(500)
    ink = """canvas => {
        const {data} = canvas.getContext("2d").getImageData(0, 0, 280, 280);
        return data.filter((value, k) => k % 4 == 3 && value).length;
    }"""
    assert canvas.evaluate(ink) > 2000, "the line is on the canvas"
    page.screenshot(path=screenshots / "05_painted.png")
    cell.get_by_role("button", name="clear").click()
    page.wait_for_timeout(500)
    assert canvas.evaluate(ink) == 0

    cell = scroll_to(page, "explore.walk(")
    drawing = cell.locator("img.widget-image")
    before = pixels(drawing)
    handle = cell.locator(".noUi-handle")
    handle.focus()
    for _ in range(60):
        handle.press("ArrowRight")
    changed(page, drawing, before)
    page.screenshot(path=screenshots / "05_walk.png")
    assert errors(page) == []
