import pytest

from mechprobe.report import words
from mechprobe.report.drawing import (
    as_png,
    as_svg,
    blank,
    inline,
    name_points,
    plain_name,
    style,
)
from mechprobe.report.palette import BINS, EDGES, REGIMES, SHADES, look, shade


def _figure(text="a"):
    with style():
        figure = blank(2, 2)
        figure.subplots().set_title(text)
    return figure


def test_a_figure_has_no_date_and_no_chance():
    one, two = _figure(), _figure()
    assert as_svg(one) == as_svg(two)
    assert as_png(one) == as_png(two)
    assert b"date" not in as_svg(one)
    assert b"Software" not in as_png(one)


def test_an_inline_figure_follows_the_page():
    text = inline(as_svg(_figure("a <b> & $c$")), "fig", 'says "so"')
    assert text.startswith('<svg role="img" aria-label="says &#34;so&#34;"')
    assert "var(--ink)" in text
    assert "#1c2126" not in text
    assert "a &lt;b&gt; &amp; $c$" in text
    assert 'id="fig-axes_1"' in text
    assert "<?xml" not in text
    assert "<metadata" not in text


def test_names_are_one_short_line():
    assert plain_name("a\nb\x1b[31m") == "a b [31m"
    assert plain_name("x" * 100, 11) == "xxxxx…xxxxx"


@pytest.mark.parametrize(
    ("points", "name"),
    [(-68, "l4"), (-50, "l4"), (-49.9, "l3"), (-25, "l3"), (-10, "l2"), (-9.9, "l1"), (-3, "l1"),
     (-2.9, "z"), (0, "z"), (2.9, "z"), (3, "g1"), (9.9, "g1"), (10, "g2")],
)  # fmt: skip
def test_a_change_at_an_edge_belongs_to_the_deeper_shade(points, name):
    assert BINS[shade(points)] == name
    assert len(BINS) == len(SHADES) == len(EDGES) + 1


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(one, other):
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("regime", [name for name in REGIMES if name != "not_measured"])
def test_regimes_are_seen_on_either_ground(regime):
    assert _contrast(REGIMES[regime].colour, "#ffffff") >= 3
    assert _contrast(REGIMES[regime].colour, "#14181c") >= 3


def test_regimes_differ_by_sign_as_well_as_colour():
    signs = [one.sign for one in REGIMES.values()]
    assert len(signs) == len(set(signs))
    assert look("new").label == "new"


def test_names_lie_within_their_panel():
    with style():
        figure = blank(3.1, 2.7)
        axes = figure.subplots()
        axes.set(xlim=(-40, 20), ylim=(-100, 10))
        points = [(x, -60.0 + i, f"GPTQ-INT{i}") for i, x in enumerate((-39, -36, 19, 18, -38, 17))]
        name_points(axes, points)
        figure.canvas.draw()
        inside = axes.get_window_extent()
        boxes = [one.get_window_extent() for one in axes.texts]
    assert len(boxes) == len(points)
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)


def test_a_small_number_keeps_its_digits_and_a_long_list_its_first_names():
    assert words.plain(6e-9, 6) == "6e\N{MINUS SIGN}09"
    assert words.plain(-2.31e-5, 6) == "\N{MINUS SIGN}2.3e-05".replace("e-", "e\N{MINUS SIGN}")
    assert words.plain(0.00025, 6) == "0.000250"
    assert words.plain(0.0, 6) == "0.000000"
    assert words.plain(0.00001, 1) == "0.0"
    assert words.some(list("abcde")) == "a, b, c, d and e"
    assert words.some(list("abcdefg")) == "a, b, c, d and 3 more"
