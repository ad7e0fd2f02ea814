import matplotlib.pyplot as plt
import numpy as np
import pytest

import kbe_view as view


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_band_counts_failures_at_the_end_and_drops_none():
    _, ax = view.figure()
    samples = np.array([[1.0], [2.0], [3.0], [np.inf], [np.inf]])
    (line,) = view.band(ax, [0], samples, color=view.BLUE)
    assert line.get_ydata().tolist() == [3.0]
    with pytest.raises(ValueError, match="samples must not contain NaN, got 1"):
        view.band(ax, [0], np.array([[np.nan], [1.0]]), color=view.BLUE)


def test_band_of_those_that_are_kept():
    _, ax = view.figure()
    samples = np.arange(60.0).reshape(20, 3)
    kept = np.ones((20, 3), dtype=bool)
    kept[10:, 1], kept[:, 2] = False, False
    (line,) = view.band(ax, [5, 6, 7], samples, kept=kept, enough=10, color=view.BLUE)
    assert line.get_xdata().tolist() == [5, 6]
    assert line.get_ydata().tolist() == [np.sort(samples[:, 0])[9], np.sort(samples[:10, 1])[4]]


def test_words():
    assert view.along([1, 10, 100], [0.25, 0.1, np.inf], at=(1, 2, 90)) == "0.25 at 1, never at 100"
    assert view.percent(0.931, 0.879, 0.962) == "93 % (88 to 96 %)"
    assert view.quantiles(range(101)) == "50 (10 to 90)"
    assert view.quantiles([1.0] * 5 + [np.inf] * 6) == "never (1 to never)"


def test_say_shows_markdown_everywhere():
    sentence = view.say("**x** = 1")
    assert sentence._repr_markdown_() == repr(sentence) == "**x** = 1"


def test_loss_arrows_follow_minus_the_gradient():
    fig, ax = view.figure()
    view.loss_arrows(fig, ax)
    (arrows,) = (artist for artist in ax.collections if hasattr(artist, "U"))
    error, sigma = np.array(arrows.XY).T
    # below the line sigma = |e| sigma grows, above it falls; the error always falls
    assert (np.sign(arrows.V) == np.sign(np.round(error - sigma, 6))).all()
    assert (arrows.U < 0).all()


TEXT = "A line that rises from nought to one, the whole width."


def line(position=0):
    fig, ax = view.figure()
    ax.plot([0, 1], [position, 1])
    return fig, f"{TEXT} Position {position}."


def test_a_shown_figure_carries_its_text_and_is_closed():
    data, metadata = view.show(*line())._repr_mimebundle_()
    assert data["image/png"].startswith("iVBOR")
    assert metadata["image/png"] == {"width": 700, "alt": f"{TEXT} Position 0."}
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="alt must say in a sentence"):
        view.show(line()[0], "a line")


def test_a_slider_has_the_same_frames_with_and_without_a_kernel():
    slider = view.slider("start", ["low", "high & dry"], line, start=1)
    bundle = slider._repr_mimebundle_()
    assert bundle["text/html"].count("<img") == 2
    assert bundle["text/html"].count(" hidden>") == 1
    assert "high &amp; dry" in bundle["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in bundle
    handle, picture, words = slider._live().children
    assert picture.value == slider.frames[1].png
    handle.value = 0
    assert picture.value == slider.frames[0].png
    assert words.value == f"{TEXT} Position 0."


def test_a_slider_needs_two_values_and_a_start_among_them():
    with pytest.raises(ValueError, match="values must be at least two, got 1"):
        view.slider("start", ["low"], line)
    with pytest.raises(ValueError, match="start must be between 0 and 1, got 2"):
        view.slider("start", ["low", "high"], line, start=2)
