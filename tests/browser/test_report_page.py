"""The report in a browser: everything is drawn, can be hidden, and is readable at every width."""

import pytest

WIDTHS = (1600, 1024, 390)
OVERLAPS = """
// Text in a figure may be turned: its corners as they lie on the page.
function corners(node, box) {
  const drawn = node instanceof SVGGraphicsElement;
  const { x, y, width, height } = drawn ? node.getBBox() : box;
  const turn = drawn ? node.getScreenCTM() : new DOMMatrix();
  return [[0, 0], [1, 0], [1, 1], [0, 1]].map(([right, down]) => {
    const point = new DOMPoint(x + right * width, y + down * height).matrixTransform(turn);
    return [point.x, point.y];
  });
}
// Pixels by which two rectangles cover each other along the side where they do so least.
function cover(one, two) {
  let least = Infinity;
  for (const { corners } of [one, two]) for (const i of [0, 1]) {
    const [dx, dy] = [corners[i + 1][0] - corners[i][0], corners[i + 1][1] - corners[i][1]];
    const size = Math.hypot(dx, dy) || 1;
    const reach = ({ corners }) => corners.map(([x, y]) => (x * dx + y * dy) / size);
    const [a, b] = [reach(one), reach(two)];
    const end = Math.min(Math.max(...a), Math.max(...b));
    least = Math.min(least, end - Math.max(Math.min(...a), Math.min(...b)));
  }
  return least;
}
const boxes = [];
const texts = "text, h1, h2, h3, p, li, td, th, figcaption, dt, dd, button";
for (const node of document.querySelectorAll(texts)) {
  if (!node.textContent.trim() || node.closest("nav")) continue;
  const style = getComputedStyle(node);
  if (style.visibility === "hidden" || style.opacity === "0" || style.display === "none") continue;
  const box = node.getBoundingClientRect();
  if (box.width < 2 || box.height < 2) continue;
  boxes.push({ node, box, corners: corners(node, box) });
}
const found = [];
const said = (item) => item.node.textContent.trim().slice(0, 40);
for (let a = 0; a < boxes.length; a++) for (let b = a + 1; b < boxes.length; b++) {
  const [one, two] = [boxes[a], boxes[b]];
  if (one.node.contains(two.node) || two.node.contains(one.node)) continue;
  const wide = Math.min(one.box.right, two.box.right) - Math.max(one.box.left, two.box.left);
  const high = Math.min(one.box.bottom, two.box.bottom) - Math.max(one.box.top, two.box.top);
  if (wide > 2 && high > 3 && cover(one, two) > 2) found.push(`${said(one)} | ${said(two)}`);
}
return found;
"""


@pytest.fixture
def show(browser, small_run):
    """Open the report and wait until every figure is drawn."""

    def show(**settings):
        browser.open((small_run / "data/test/08_reporting/report.html").as_uri(), **settings)
        browser.wait("document.documentElement.dataset.drawn === 'yes'")
        return browser

    return show


def test_every_figure_is_drawn_and_the_console_is_silent(show):
    page = show()
    plots = page.driver.execute_script(
        "return [...document.querySelectorAll('.plot')].map((plot) => plot.querySelectorAll("
        "'.trace, .heatmaplayer image').length)"
    )
    assert len(plots) >= 8
    assert all(plots)
    assert page.errors == []


def test_a_click_in_the_legend_hides_an_algorithm_in_all_panels(show):
    page = show()
    count = "document.querySelectorAll('#behaviour-0 .scatterlayer .trace').length"
    before = page.wait(count)
    page.driver.execute_script(
        "const item = document.querySelector('#behaviour-0 .legendtoggle');"
        "for (const kind of ['mousedown', 'mouseup'])"
        " item.dispatchEvent(new MouseEvent(kind, { bubbles: true }));"
    )
    page.wait(f"{count} === {before - 4}")  # a line and its interval in both panels


@pytest.mark.parametrize("width", WIDTHS)
def test_no_text_covers_another_and_nothing_is_wider_than_the_page(show, width):
    page = show(width=width)
    assert page.driver.execute_script(OVERLAPS) == []
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_values_of_parameters_have_room_on_a_phone(show):
    """They had a letter a line, and the page was twice as long."""
    page = show(width=390)
    cells = "[...document.querySelectorAll('th[scope=row] + td')].map((cell) => cell.clientWidth)"
    widths = page.driver.execute_script(f"return {cells}")
    assert len(widths) > 50
    assert min(widths) > 100


def test_a_dark_system_gets_a_dark_page_and_the_button_turns_it_back(show):
    page = show(dark=True)
    ink = "getComputedStyle(document.body).color"
    assert page.wait(ink) == "rgb(229, 231, 235)"
    label = "document.querySelector('#behaviour-0 .xtick text').style.fill"
    assert page.wait(label) == "rgb(229, 231, 235)"
    page.driver.execute_script("document.getElementById('theme').click()")
    page.wait(f"{ink} === 'rgb(31, 36, 48)'")
    page.wait(f"{label} === 'rgb(31, 36, 48)'")
