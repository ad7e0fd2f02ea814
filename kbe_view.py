"""What the reader looks at: figures in one style, sliders, a colour per quantity, arrows of a loss, computed words."""

import base64
import html
import io
import time
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

_IMPORTED = time.perf_counter()

# Okabe and Ito's colours, told apart with every common colour vision; a line style goes with each, for print.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#555555",
)  # fmt: skip

# One look per quantity, the same in every chapter: ax.plot(x, y, **view.V)
MU = {"color": BLUE, "label": "μ"}
SIGMA = {"color": ORANGE, "linestyle": "--", "label": "σ"}
V = {"color": BLUE, "label": "V = ⟨(y−μ)²⟩"}
V_STAR = {"color": ORANGE, "linestyle": "--", "label": "V* = ⟨σ²⟩"}
GAP = {"color": GREEN, "linestyle": "-.", "label": "|V−V*|"}
MEASURED = {"color": BLUE, "label": "measured"}
THEORY = {"color": "black", "linestyle": "--", "linewidth": 1.2, "label": "theory"}
GUIDE = {"color": GREY, "linestyle": ":", "linewidth": 1.0}
SERIES = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)

# One name per axis.  An epoch is one step of gradient descent; labels and outputs are numbers between 0 and 1.
EPOCH_AXIS = "epoch (η = 0.1)"
POINTS_AXIS = "number of points N"
ERROR_AXIS = "error |y − μ|"
SIGMA_AXIS = "standard deviation σ"
ALPHA_AXIS = "prediction scale α (1/bit)"

_STYLE = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 11,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
    "image.cmap": "viridis",
}


def figure(rows: int = 1, columns: int = 1, width: float = 7.0, height: float | None = None, **subplots):
    """A figure in the book's style and its axes, as `plt.subplots` gives them; sizes in inches."""
    plt.rcParams.update(_STYLE)  # not a context: legends and labels, made later, must have the style too
    height = height or 0.62 * width * rows / columns + 0.25
    return plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **subplots)


def _png(fig: Figure, colors: int | None = None) -> bytes:
    """The figure as a picture with two pixels per point of the page, and closed; with few colours, a third the size."""
    fig.set_dpi(2 * fig.dpi)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()  # once, where `savefig` draws a second time to learn the layout
    plt.close(fig)
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    buffer = io.BytesIO()
    if colors is None:
        picture.save(buffer, format="png")
    else:
        picture.quantize(colors).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


class show:
    """A finished figure with a text that says what it shows, for those who cannot see it; the last line of a cell.

    The text is computed where it names numbers: `view.show(fig, f"... rises to {top:.2f}.")`.

    Raises:
        ValueError: if the text is shorter than a sentence.
    """

    def __init__(self, fig: Figure, alt: str, colors: int | None = None):
        self.alt = _sentence(alt)
        self.width = round(fig.get_figwidth() * fig.dpi)
        self.png = _png(fig, colors)

    def __repr__(self) -> str:
        return self.alt

    def _repr_mimebundle_(self, **_) -> tuple[dict, dict]:
        picture = base64.b64encode(self.png).decode()
        return {"image/png": picture, "text/plain": self.alt}, {"image/png": {"width": self.width, "alt": self.alt}}


def _sentence(alt: str) -> str:
    alt = " ".join(alt.split())
    if len(alt) < 40:
        raise ValueError(f"alt must say in a sentence what the figure shows, got {alt!r}")
    return alt


class slider:
    """A figure for each value of a setting: a live slider with a kernel, the same frames on the page without one.

    Args:
        name: what is moved, as the label says it ("learning rate η").
        values: the words for the positions, in order.
        draw: position (0, 1, ...) -> figure and the text that says what it shows, as in `show`.
        start: the position that is shown first, and alone where nothing can be moved.

    Raises:
        ValueError: if there are fewer than two values, or start is none of them.
    """

    def __init__(self, name: str, values: Sequence[str], draw: Callable[[int], tuple[Figure, str]], start: int = 0):
        if len(values) < 2:
            raise ValueError(f"values must be at least two, got {len(values)}")
        if start not in range(len(values)):
            raise ValueError(f"start must be between 0 and {len(values) - 1}, got {start}")
        self.name, self.values, self.start = name, [str(value) for value in values], start
        self.frames = [show(*draw(position), colors=128) for position in range(len(values))]

    def __repr__(self) -> str:
        return f"{self.name} = {self.values[self.start]}: {self.frames[self.start].alt}"

    def _repr_mimebundle_(self, **_) -> dict:
        return {**self._live()._repr_mimebundle_(), "text/html": self._page(), "text/plain": repr(self)}

    def _live(self):
        import ipywidgets  # here, because only a reader with a kernel needs it

        handle = ipywidgets.SelectionSlider(
            options=[(value, position) for position, value in enumerate(self.values)],
            value=self.start, description=self.name, style={"description_width": "initial"},
            layout={"width": "100%", "max_width": f"{self.frames[0].width}px"},
        )  # fmt: skip
        picture = ipywidgets.Image(value=self.frames[self.start].png, width=self.frames[0].width)
        words = ipywidgets.Label(self.frames[self.start].alt)

        def move(change) -> None:
            picture.value, words.value = self.frames[change["new"]].png, self.frames[change["new"]].alt

        handle.observe(move, "value")
        return ipywidgets.VBox([handle, picture, words])

    def _page(self) -> str:
        # The script of the page (_static/kbe.js) shows one frame at a time; without it the first one stays.
        pictures = "".join(
            f'<img src="data:image/png;base64,{base64.b64encode(frame.png).decode()}" alt="{html.escape(frame.alt)}"'
            f' width="{frame.width}"{"" if position == self.start else " hidden"}>'
            for position, frame in enumerate(self.frames)
        )
        name, words = html.escape(self.name), html.escape("|".join(self.values))
        return (
            f'<div class="kbe-slider" role="group" aria-label="{name}">{pictures}<label>{name}'
            f' <input type="range" min="0" max="{len(self.values) - 1}" value="{self.start}" data-words="{words}"'
            f' aria-valuetext="{html.escape(self.values[self.start])}">'
            f" <output>{html.escape(self.values[self.start])}</output></label></div>"
        )


def band(ax: Axes, x, samples, quantiles=(0.1, 0.9), kept=None, enough: int = 20, **look):
    """Median over the first axis of samples (M, T) as a line, with a band between two quantiles.

    Infinite and failed values count at their end of the order; NaN is not allowed, so that no run is dropped.

    Args:
        kept: (M, T), which networks to show at which x ("not failed yet", say); all x with fewer than `enough` of them
            are left out.
    """
    samples, x = np.asarray(samples), np.asarray(x)
    if kept is None:
        return spread(ax, x, samples.T, quantiles, **look)
    kept = np.asarray(kept)
    shown = np.flatnonzero(kept.sum(0) >= enough)
    return spread(ax, x[shown], [samples[kept[:, k], k] for k in shown], quantiles, **look)


def spread(ax: Axes, x, groups, quantiles=(0.1, 0.9), **look):
    """As `band`, for groups of values that need not be equally large, one group at every x."""
    undefined = sum(int(np.isnan(group).sum()) for group in groups)
    if undefined:
        raise ValueError(f"samples must not contain NaN, got {undefined}")
    levels = (quantiles[0], 0.5, quantiles[1])
    low, middle, high = np.transpose([np.quantile(group, levels, method="inverted_cdf") for group in groups])
    ax.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
    return ax.plot(x, middle, **look)


def loss_arrows(fig: Figure, ax: Axes, error_max: float = 0.6, sigma_max: float = 0.6, n: int = 15):
    """Arrows of minus the gradient of eq. 8 for one point over (|e|, sigma), coloured by the log of their length."""
    error, sigma = torch.meshgrid(torch.linspace(0.02, error_max, n), torch.linspace(0.02, sigma_max, n), indexing="xy")
    d_error, d_sigma = -error / sigma**2, (error**2 - sigma**2) / sigma**3
    length = torch.hypot(d_error, d_sigma)
    arrows = ax.quiver(
        error, sigma, d_error / length, d_sigma / length, length, norm=LogNorm(), cmap="Greys", pivot="mid",
        width=0.004, scale=26, edgecolor="grey", linewidth=0.2,
    )  # fmt: skip
    fig.colorbar(arrows, ax=ax, label="steepness |∇L|")
    ax.set(xlabel=ERROR_AXIS, ylabel=SIGMA_AXIS, xlim=(0, error_max), ylim=(0, sigma_max))


class say:
    """A computed sentence: shows its Markdown on the page, in Lab and in Colab alike."""

    def __init__(self, markdown: str):
        self.markdown = markdown

    def _repr_markdown_(self) -> str:
        return self.markdown

    def __repr__(self) -> str:
        return self.markdown


def along(x, y, at, digits: int = 2) -> str:
    """A curve in words, at the x nearest to some: "0.25 at 1, 0.013 at 100"; an infinite value reads "never"."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    nearest = dict.fromkeys(int(np.abs(x - place).argmin()) for place in at)
    return ", ".join(f"{_word(y[k], digits)} at {x[k]:g}" for k in nearest)


def _word(value: float, digits: int) -> str:
    return "never" if np.isinf(value) else f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def percent(estimate: float, low: float, high: float) -> str:
    """A fraction and its interval in words: "93 % (88 to 96 %)"."""
    return f"{100 * estimate:.0f} % ({100 * low:.0f} to {100 * high:.0f} %)"


def quantiles(values, digits: int = 3) -> str:
    """Median and 10 to 90 % range in words: "191 (102 to 350)"; an infinite value reads "never"."""
    low, middle, high = np.quantile(np.asarray(values), (0.1, 0.5, 0.9), method="inverted_cdf")
    return f"{_word(middle, digits)} ({_word(low, digits)} to {_word(high, digits)})"


def running_time() -> say:
    """How long the chapter has been running, counted from the import of this module."""
    return say(f"This chapter ran in {time.perf_counter() - _IMPORTED:.0f} s.")
