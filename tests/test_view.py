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


def test_words():
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
