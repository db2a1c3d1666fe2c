//! One plot as SVG that lies in the page: no script or file from elsewhere is needed to see it.
//!
//! Invariants: the colours in the SVG are those of the light scheme, and the page's style maps each to
//! a variable, so a picture taken out of the page still is one; a curve has at most [`POINTS_MAX`]
//! points and keeps its extremes.

use maud::{Markup, PreEscaped, html};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use serde_json::json;

use super::axis::Axis;

/// Points of a curve that are drawn.
pub const POINTS_MAX: usize = 400;

const WIDTH: u32 = 440;
const HEIGHT: u32 = 260;
const INK: RGBColor = RGBColor(0x52, 0x60, 0x6d);
const GRID: RGBColor = RGBColor(0xe1, 0xe5, 0xea);
/// Of the curves; in the style they are `--c0` to `--c5`.
const CURVES: [RGBColor; 6] = [
    RGBColor(0x0b, 0x6b, 0xcb),
    RGBColor(0xd9, 0x48, 0x0f),
    RGBColor(0x2b, 0x8a, 0x3e),
    RGBColor(0x86, 0x2e, 0x9c),
    RGBColor(0xc2, 0x25, 0x5c),
    RGBColor(0x5c, 0x94, 0x0d),
];
/// Curves that one plot can tell apart.
pub const CURVES_MAX: usize = CURVES.len();

/// What is drawn.
#[derive(Clone, Debug)]
pub struct Plot {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub curves: Vec<Curve>,
}

/// One line.
#[derive(Clone, Debug)]
pub struct Curve {
    pub name: String,
    /// Which of the colours, by number.
    pub color: usize,
    pub filled: bool,
    pub points: Vec<Point>,
}

/// A point in the coordinates of the axes, and what it says when pointed at.
#[derive(Clone, Debug)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    pub x_text: String,
    pub y_text: String,
}

/// The plot with its title and legend.
pub fn figure(plot: &Plot) -> Markup {
    let Some(drawing) = draw(plot) else {
        return html! { figure { figcaption { (plot.title) } p.muted { "could not be drawn" } } };
    };
    html! {
        figure {
            figcaption {
                strong { (plot.title) }
                @if plot.curves.len() > 1 {
                    ul.legend {
                        @for curve in &plot.curves {
                            li { i.(format!("key k{}", curve.color % CURVES_MAX)) {} (curve.name) }
                        }
                    }
                }
            }
            div.plot data-plot=(drawing.hover) { (PreEscaped(drawing.svg)) }
        }
    }
}

struct Drawing {
    svg: String,
    /// For the script: the area of the plot and each point's place and words.
    hover: String,
}

/// `None` when the backend refuses, which it does only for an area without size.
fn draw(plot: &Plot) -> Option<Drawing> {
    let mut svg = String::new();
    let hover = {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        draw_on(plot, &root)?
    };
    Some(Drawing { svg, hover })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_on(plot: &Plot, root: &Area<'_>) -> Option<String> {
    let font = ("sans-serif", 15).into_font().color(&INK);
    root.draw(&Text::new(plot.y.title.clone(), (6, 4), font.clone()))
        .ok()?;
    let mut chart = ChartBuilder::on(root)
        .margin_top(24)
        .margin_right(26)
        .margin_left(4)
        .x_label_area_size(38)
        .y_label_area_size(58)
        .build_cartesian_2d(Scale(plot.x.clone()), Scale(plot.y.clone()))
        .ok()?;
    chart
        .configure_mesh()
        .x_labels(20)
        .y_labels(20)
        .max_light_lines(0)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(font.clone())
        .axis_desc_style(font)
        .x_desc(plot.x.title.clone())
        .draw()
        .ok()?;
    for curve in &plot.curves {
        let color = CURVES[curve.color % CURVES_MAX];
        let points = curve.points.iter().map(|p| (p.x, p.y));
        let line = ShapeStyle::from(color).stroke_width(2);
        if curve.filled {
            let area = AreaSeries::new(points, plot.y.min, color.mix(0.18)).border_style(line);
            chart.draw_series(area).ok()?;
        } else {
            chart.draw_series(LineSeries::new(points, line)).ok()?;
        }
    }
    let pixels = chart.plotting_area().get_pixel_range();
    let place = |p: &Point| {
        let (x, y) = chart.plotting_area().map_coordinate(&(p.x, p.y));
        json!([x, y, p.x_text, p.y_text])
    };
    let curves = plot.curves.iter().map(|c| {
        json!({
            "name": c.name,
            "color": c.color % CURVES_MAX,
            "points": c.points.iter().map(place).collect::<Vec<_>>(),
        })
    });
    let hover = json!({
        "top": pixels.1.start,
        "bottom": pixels.1.end,
        "width": WIDTH,
        "curves": curves.collect::<Vec<_>>(),
    });
    root.present().ok()?;
    Some(hover.to_string())
}

/// An axis for the library: linear in its own coordinates, with ticks where [`Axis`] has them.
struct Scale(Axis);

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let part = (value - self.0.min) / (self.0.max - self.0.min);
        limit.0 + (part * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.0.ticks.iter().map(|(at, _)| *at).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.0.min..self.0.max
    }
}

impl ValueFormatter<f64> for Scale {
    fn format(value: &f64) -> String {
        value.to_string()
    }

    fn format_ext(&self, value: &f64) -> String {
        let found = self.0.ticks.iter().find(|(at, _)| at == value);
        found.map_or_else(String::new, |(_, text)| text.clone())
    }
}

/// At most [`POINTS_MAX`] of the points: of each stretch the lowest and the highest.
pub fn thin(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    if points.len() <= POINTS_MAX {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(POINTS_MAX / 2);
    let mut kept = Vec::with_capacity(POINTS_MAX);
    for part in points.chunks(stretch) {
        let by_value = |a: &usize, b: &usize| part[*a][1].total_cmp(&part[*b][1]);
        let low = (0..part.len()).min_by(by_value).unwrap_or(0);
        let high = (0..part.len()).max_by(by_value).unwrap_or(0);
        kept.push(part[low.min(high)]);
        if low != high {
            kept.push(part[low.max(high)]);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thinned_curve_keeps_its_extremes_and_its_order() {
        let mut points: Vec<_> = (0..10_000).map(|i| [f64::from(i), 1.0]).collect();
        points[5_003][1] = 99.0;
        points[7_777][1] = -3.0;
        let kept = thin(&points);
        assert!(kept.len() <= POINTS_MAX);
        assert!(kept.iter().any(|p| p[1] == 99.0) && kept.iter().any(|p| p[1] == -3.0));
        assert!(kept.is_sorted_by(|a, b| a[0] < b[0]));
    }

    #[test]
    fn a_plot_has_its_ticks_curves_and_words() {
        let plot = Plot {
            title: "load <b>".to_owned(),
            x: Axis::seconds(10.0),
            y: Axis::linear("per second", "per_second", 0.0, 40_000.0),
            curves: vec![Curve {
                name: "sent".to_owned(),
                color: 1,
                filled: false,
                points: (0..10)
                    .map(|i| Point {
                        x: f64::from(i),
                        y: 4_000.0 * f64::from(i),
                        x_text: format!("{i} s"),
                        y_text: "\"><script>".to_owned(),
                    })
                    .collect(),
            }],
        };
        let text = figure(&plot).into_string();
        assert!(
            text.contains("<polyline") && text.contains("#D9480F"),
            "{text}"
        );
        for tick in ["20k", "40k", "seconds since the start", "per second"] {
            assert!(text.contains(tick), "{tick} in {text}");
        }
        assert!(!text.contains("<script>") && !text.contains("<b>"));
    }
}
