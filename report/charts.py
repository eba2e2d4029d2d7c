"""Charts as Vega-Lite specifications, from plain rows. No styling beyond what carries meaning; colours come from the page."""

from __future__ import annotations

from typing import Any

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
# Okabe and Ito's palette, told apart by colour-blind readers, on light and on dark ground.
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#B8A800"]
INK = {"light": "#1c1c1e", "dark": "#e8e8ea"}
GRID = {"light": "#dddddf", "dark": "#3a3a3e"}


def config(theme: str) -> dict[str, Any]:
    """Vega-Lite's config for a theme, 'light' or 'dark': transparent ground, the page's ink."""
    ink, grid = INK[theme], GRID[theme]
    return {
        "background": None,
        "font": "system-ui, sans-serif",
        "view": {"stroke": None},
        "title": {"color": ink, "anchor": "start", "fontSize": 13},
        "axis": {
            "labelColor": ink,
            "titleColor": ink,
            "gridColor": grid,
            "domainColor": grid,
            "tickColor": grid,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
        },
        "legend": {
            "labelColor": ink,
            "titleColor": ink,
            "orient": "bottom",
            "title": None,
            "labelFontSize": 12,
            "columns": 3,
        },
        "header": {"labelColor": ink, "titleColor": ink},
    }


def colour(backends: list[str]) -> dict[str, Any]:
    """The same colour for a backend in every chart of a report."""
    return {
        "field": "backend",
        "type": "nominal",
        "scale": {
            "domain": backends,
            "range": [PALETTE[n % len(PALETTE)] for n in range(len(backends))],
        },
    }


def by_load(
    rows: list[dict[str, Any]], backends: list[str], axis: str, title: str, unit: str
) -> dict[str, Any]:
    """Bars by offered load, a colour a backend, with 95 % intervals. Rows: backend, offered, value, low, high (may be None)."""
    x = {"field": "offered", "type": "ordinal", "title": axis, "axis": {"labelAngle": 0}}
    offset = {"xOffset": {"field": "backend", "sort": backends}}
    bars = {
        "mark": {"type": "bar", "cornerRadiusEnd": 2},
        "encoding": {
            "y": {"field": "value", "type": "quantitative", "title": unit},
            "color": colour(backends),
            "tooltip": [{"field": name} for name in ("backend", "offered")]
            + [{"field": name, "format": ".1f"} for name in ("value", "low", "high")],
        },
    }
    intervals = {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "rule", "strokeWidth": 1.5, "color": "#777"},
        "encoding": {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}},
    }
    known = any(row["low"] is not None for row in rows)
    return {
        "$schema": SCHEMA,
        "title": title,
        "width": "container",
        "height": 240,
        "data": {"values": rows},
        "encoding": {"x": x, **offset},
        "layer": [bars, intervals] if known else [bars],
    }


def time_line(
    rows: list[dict[str, Any]], backends: list[str], field: str, title: str, unit: str
) -> dict[str, Any]:
    """One value in each five seconds of the cells of one offered load, ramp included. Rows: backend, trial, start_s, phase, `field`."""
    return {
        "$schema": SCHEMA,
        "title": title,
        "width": "container",
        "height": 170,
        "data": {"values": rows},
        "mark": {"type": "line", "point": True, "strokeWidth": 2},
        "encoding": {
            "x": {
                "field": "start_s",
                "type": "quantitative",
                "title": "seconds since the first user",
            },
            "y": {"field": field, "type": "quantitative", "title": unit},
            "color": colour(backends),
            "detail": {"field": "trial"},
            "tooltip": [{"field": name} for name in ("backend", "trial", "phase", "start_s")]
            + [{"field": field, "format": ".1f"}],
        },
    }


def speed_and_quality(
    rows: list[dict[str, Any]], backends: list[str], title: str
) -> dict[str, Any]:
    """What was served as points: token rate over what quantization cost, with 95 % intervals. Rows: backend, quantization, change,
    change_low, change_high (percent of perplexity), rate, low, high (intervals may be None), comparable."""
    x = {
        "field": "change",
        "type": "quantitative",
        "title": "perplexity above the unquantized model's, % (left is better)",
    }
    y = {
        "field": "rate",
        "type": "quantitative",
        "title": "tokens/s (up is better)",
        "scale": {"zero": True},
    }
    tooltip = [{"field": name} for name in ("backend", "quantization", "comparable")] + [
        {"field": name, "format": ".1f"} for name in ("change", "rate")
    ]
    shape = {
        "field": "comparable",
        "type": "nominal",
        "scale": {"domain": ["comparable", "not comparable"], "range": ["circle", "cross"]},
    }
    points = {
        "mark": {"type": "point", "filled": True, "size": 110, "opacity": 1},
        "encoding": {"x": x, "y": y, "color": colour(backends), "shape": shape, "tooltip": tooltip},
    }
    names = {
        "mark": {"type": "text", "align": "left", "dx": 9, "dy": -7},
        "encoding": {"x": x, "y": y, "text": {"field": "quantization"}, "color": colour(backends)},
    }
    across = {
        "transform": [{"filter": "isValid(datum.change_low)"}],
        "mark": {"type": "rule", "color": "#777"},
        "encoding": {
            "x": {"field": "change_low", "type": "quantitative"},
            "x2": {"field": "change_high"},
            "y": y,
        },
    }
    along = {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "rule", "color": "#777"},
        "encoding": {
            "y": {"field": "low", "type": "quantitative"},
            "y2": {"field": "high"},
            "x": x,
        },
    }
    bars = [
        layer
        for layer, field in ((across, "change_low"), (along, "low"))
        if any(row[field] is not None for row in rows)
    ]
    return {
        "$schema": SCHEMA,
        "title": title,
        "width": "container",
        "height": 280,
        "data": {"values": rows},
        "layer": [*bars, points, names],
    }
