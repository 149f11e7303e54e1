"""`make test-browser`: notebooks 00, 02 and 05 in JupyterLab, as `make lab` opens it, and Chromium, used as a person
would; and the page that needs no Python.

On the bundled digits, so that it needs neither MNIST nor a network. Screenshots are left in runs/screenshots, of
$MNIST_AE_OUT if that is set. Skipped, with the reason, where there is no Chromium or Chrome.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from test_make import BRIEF, copy_repository

from mnist_ae import experiment, pretrained, storage, train
from mnist_ae.page import PAGE

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
SCREENSHOTS = storage.runs_folder() / "screenshots"
CELLS_TIMEOUT = 600  # seconds for all cells of a notebook
BUSY = """() => document.querySelector(".jp-Notebook-ExecutionIndicator")?.dataset.status != "idle"
    || [...document.querySelectorAll(".jp-InputPrompt")].some(prompt => prompt.innerText.includes("[*]"))"""
SHOWN = "image => fetch(image.src).then(file => file.text()).catch(() => null)"  # null: the next takes its place
DRAWN = """canvas => canvas.getContext("2d").getImageData(0, 0, 280, 280).data
    .filter((value, k) => k % 4 == 3 && value).length"""

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of what `make lab` serves, of a copy with a brief recipe, on the bundled digits."""
    folder = tmp_path_factory.mktemp("lab")
    paths = [f"notebooks/{path.name}" for path in (storage.HOME / "notebooks").glob("*.ipynb")]
    bundled = [(path, r"dataset = \"auto\"", r"dataset = \"digits\"") for path in paths]
    copy_repository(folder, BRIEF + bundled, "*.png")
    own = {"MNIST_AE_OUT": "out", "IPYTHONDIR": "ipython", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "run"}
    own |= {f"JUPYTERLAB_{name}_DIR": name for name in ("SETTINGS", "WORKSPACES")}
    own = {name: str(folder / place) for name, place in own.items()}
    options = {"cwd": folder, "env": os.environ | own | {"PYTHONPATH": str(folder)}}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = f"--ip=127.0.0.1 --port={port} --no-browser --IdentityProvider.token= --LabApp.news_url="
    told += " --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"
    python, address = shlex.quote(sys.executable), f"http://127.0.0.1:{port}"
    command = ["make", "lab", f"PYTHON={python}", f"LAB={told}"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **options)
    try:
        for _ in range(240):
            assert server.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5)
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # make, and the server that it started
        server.wait(30)


@pytest.fixture
def open_page():
    """open_page(width, height, ...): a page of the browser; what goes wrong in it is collected in its `errors`."""
    from playwright.sync_api import sync_playwright

    def open_page(width, height, **options):
        page = chromium.new_page(viewport={"width": width, "height": height}, **options)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.set_default_timeout(60_000)
        return page

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield open_page
        chromium.close()


@pytest.fixture
def page(lab, open_page):
    return open_page(1400, 1000, base_url=lab)


def run_all(page):
    """Run > Run All Cells once the kernel is there, and wait until no cell waits or runs."""
    settle(page, 120)  # idle for a moment only, while it connects, the kernel may lose what it is given
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_function(BUSY)
    settle(page, CELLS_TIMEOUT)


def settle(page, timeout):
    """Wait until no cell was busy three times, a second apart: between two cells it may look so once."""
    deadline, quiet = time.monotonic() + timeout, 0
    while quiet < 3:
        assert time.monotonic() < deadline, "the cells are still running"
        page.wait_for_timeout(1000)
        quiet = 0 if page.evaluate(BUSY) else quiet + 1


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


def answer(page, cell, act, shown=1):
    """Do what `act` does, and wait until each of the images in the cell, so many, is another: the seconds."""
    images = cell.locator("img.widget-image").all()
    assert len(images) == shown
    before = [image.evaluate(SHOWN) for image in images]
    begin = time.monotonic()
    act()
    for image, earlier in zip(images, before, strict=True):
        while image.evaluate(SHOWN) in (earlier, None):
            assert time.monotonic() - begin < 10, "an image did not change"
            page.wait_for_timeout(5)
    return time.monotonic() - begin


def move_a_slider(page):
    """The second of the ten, step by step, and then all of them with a button: the decoded image follows, soon."""
    cell = scroll_to(page, "explore.sliders(")
    handles = cell.locator(".noUi-handle")
    assert handles.count() == 10
    handles.nth(1).focus()
    seconds = statistics.median(answer(page, cell, lambda: handles.nth(1).press("ArrowUp")) for _ in range(15))
    print(f"the decoded image followed a slider after {seconds:.3f} s, browser and network included")
    assert seconds < 0.5
    assert cell.locator(".widget-readout").nth(1).inner_text() == "0.15"
    answer(page, cell, cell.get_by_role("button", name="alone").nth(4).click)


def pick_an_image(page):
    cell = scroll_to(page, "explore.images(")
    number = cell.locator("input[type=number]")
    number.fill("1")  # a 2, where number 0 is a 7: two images of one digit may well have the same reconstruction
    answer(page, cell, lambda: number.press("Enter"), shown=2)  # the image and its reconstruction; its neighbours


def draw_a_seven(page, canvas):
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 70, box["y"] + 60)
    page.mouse.down()
    for x, y in [(200, 60), (160, 140), (120, 230)]:
        page.mouse.move(box["x"] + x, box["y"] + y, steps=8)
    page.mouse.up()


def draw_a_digit(page):
    cell = scroll_to(page, "explore.paint(")
    canvas = cell.locator("canvas")
    answer(page, cell, lambda: draw_a_seven(page, canvas))
    page.wait_for_timeout(500)
    assert canvas.evaluate(DRAWN) > 2000, "the line is on the canvas"


def interpolate(page):
    cell = scroll_to(page, "explore.interpolation(")
    handle = cell.locator(".noUi-handle")
    handle.focus()
    answer(page, cell, lambda: [handle.press("ArrowRight") for _ in range(60)])


def test_make_lab_opens_the_notebooks_with_the_kernel_of_this_environment(lab, page):
    page.goto("/")
    page.locator(".jp-DirListing-item", has_text="01_train.ipynb").wait_for()
    page.locator(".lm-TabBar-tab", has_text="00_start_here.ipynb").wait_for()
    kernels = json.load(urllib.request.urlopen(f"{lab}/api/kernelspecs"))
    assert kernels["default"] == "python3"
    assert kernels["kernelspecs"]["python3"]["spec"]["argv"][0] in ("python", sys.executable)
    for path in (storage.HOME / "notebooks").glob("*.ipynb"):
        assert json.loads(path.read_text())["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize(
    ("name", "acts"),
    [
        ("00_start_here", (move_a_slider, draw_a_digit)),
        ("02_inspect_codes", (move_a_slider, pick_an_image)),
        ("05_ten_digits", (move_a_slider, pick_an_image, draw_a_digit, interpolate)),
    ],
)
def test_a_notebook_shows_what_it_showed_runs_and_answers_the_hand(name, acts, page):
    page.goto(f"/lab/workspaces/{name[:2]}/tree/notebooks/{name}.ipynb")  # of its own: else the other opens, too
    page.locator(".jp-RenderedImage img").first.wait_for()  # stored outputs show before anything runs
    run_all(page)
    assert errors(page) == []
    for act in acts:
        act(page)
        page.screenshot(path=SCREENSHOTS / f"{name}_{act.__name__}.png")
        assert errors(page) == []


@pytest.mark.parametrize(("width", "height", "scheme"), [(1100, 1000, "light"), (375, 812, "dark")])
def test_the_page_that_needs_no_python_reads_what_is_drawn_as_pytorch_does(width, height, scheme, open_page, digits):
    """From the disk, without a network, on a desk and on a phone."""
    if not (path := pretrained.FOLDER / PAGE).exists():
        pytest.skip(f"figures/{PAGE} is not there: `make figures/{PAGE}` writes it")
    model, images = experiment.pretrained(), digits.test_images[:100]
    page = open_page(width, height, color_scheme=scheme, offline=True)
    page.goto(path.as_uri())
    draw_a_seven(page, page.locator("#sheet"))
    page.get_by_text("It reads a 7.").wait_for()
    told = page.evaluate("images => images.map(activations)", (images.flatten(1) / 255).tolist())
    torch.testing.assert_close(torch.tensor(told), train.encode(model, images), rtol=0, atol=1e-3)
    picture = "canvas => canvas.toDataURL()"
    drawn, sheet = page.locator("#drawn"), page.locator("#sheet")
    before = drawn.evaluate(picture)
    page.locator("#sliders input").nth(8).fill("0.5")
    assert drawn.evaluate(picture) != before
    assert page.locator("#sum").inner_text() == "the sum: 1.50"
    assert sheet.evaluate(DRAWN) > 2000
    page.screenshot(path=SCREENSHOTS / f"try_{width}.png", full_page=True)
    page.get_by_role("button", name="clear").click()
    assert sheet.evaluate(DRAWN) == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing to scroll sideways"
    assert page.errors == []
