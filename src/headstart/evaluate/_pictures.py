"""Pictures of an evaluation: how calibrated it is, and precision against recall."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart._errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SCOPES = (("all", "all calls", "#888888"), ("read_only", "reads", "#1f77b4"))
_LARGEST = 300.0
"""The area of the dot that stands for the most predictions."""


def prepare_pictures(folder: str | Path) -> None:
    """Make the folder for pictures: what fails should fail before the long work.

    Raises:
        UsageError: matplotlib is not installed, or the folder cannot be made.
    """
    _load_matplotlib()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        msg = f"The folder {str(folder)!r} for pictures cannot be made: {reason}."
        raise UsageError(msg) from error


def draw_pictures(figures: Mapping[str, Any], folder: str | Path) -> tuple[Path, Path]:
    """Draw `calibration.svg` and `precision-recall.svg`, the same for the same figures.

    Args:
        figures: What `EvaluationReport.to_dict` gives.
        folder: Where they are put; it is made if it does not exist.

    Raises:
        UsageError: matplotlib is not installed, or the folder cannot be made.
    """
    prepare_pictures(folder)
    drawing = _load_matplotlib()
    paths = Path(folder, "calibration.svg"), Path(folder, "precision-recall.svg")
    for path, draw in zip(paths, (_draw_calibration, _draw_precision), strict=True):
        _save(drawing, path, figures, draw)
    return paths


def _load_matplotlib() -> Any:
    try:
        import_module("matplotlib.figure")
        return import_module("matplotlib")
    except ImportError as error:
        msg = 'Please install `matplotlib`: pip install "headstart[matplotlib]"'
        raise UsageError(msg) from error


def _save(
    drawing: Any,
    path: Path,
    figures: Mapping[str, Any],
    draw: Callable[[Any, Mapping[str, Any]], None],
) -> None:
    # Without a salt and with a date no two files would be the same.
    with drawing.rc_context({"svg.hashsalt": "headstart", "svg.fonttype": "none"}):
        figure = drawing.figure.Figure(layout="constrained")
        draw(figure, figures)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw_calibration(figure: Any, figures: Mapping[str, Any]) -> None:
    figure.set_size_inches(10, 5)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, bins, title in zip(
        panels,
        ("calibration", "calibration_eventually"),
        ("in the next answer", "then, or later before a write"),
        strict=True,
    ):
        axes.plot([0, 1], [0, 1], color="black", linewidth=0.5)
        for scope, label, color in _SCOPES:
            used = [each for each in figures[scope][bins] if each["predictions"]]
            most = max((each["predictions"] for each in used), default=1)
            error = figures[scope][bins.replace("calibration", "calibration_error")]
            axes.scatter(
                [each["stated"] for each in used],
                [each["right"] for each in used],
                s=[max(4.0, _LARGEST * each["predictions"] / most) for each in used],
                color=color,
                alpha=0.6,
                label=f"{label}, error {error:.3f}",
            )
        axes.set_title(title)
        axes.set_xlabel("stated probability")
        axes.legend(loc="upper left", markerscale=0.4)
    panels[0].set_ylabel("share that was right")


def _draw_precision(figure: Any, figures: Mapping[str, Any]) -> None:
    figure.set_size_inches(6, 5)
    axes = figure.subplots()
    for scope, label, color in _SCOPES:
        used = [row for row in figures[scope]["thresholds"] if row["predictions"]]
        recalls = [row["recall"] for row in used]
        precisions = [row["precision"] for row in used]
        axes.plot(recalls, precisions, "o-", color=color, label=label)
        for row, recall, precision in zip(used, recalls, precisions, strict=True):
            axes.annotate(
                f"{row['threshold']:.1f}",
                (recall, precision),
                textcoords="offset points",
                xytext=(4, 4),
                fontsize="x-small",
            )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("share of the calls predicted (recall)")
    axes.set_ylabel("share of the predictions right (precision)")
    axes.set_title("Predictions at least so probable")
    axes.legend(loc="lower left")
