//! The plot: throughput and p99 against callers.

use plotters::{
    coord::{
        Shift,
        combinators::{BindKeyPoints, IntoLogRange},
    },
    prelude::*,
};

use crate::{
    Kind, Result,
    report::grouped,
    results::{Medians, Results},
};

const SIZE: (u32, u32) = (1100, 560);
/// The height of the strip below the panels.
const LEGEND: u32 = 84;
const LEGEND_COLUMNS: usize = 4;
const TEXT: (&str, u32) = ("sans-serif", 15);

/// Told apart by those who see colours differently, too (Okabe and Ito).
const fn colour(kind: Kind) -> RGBColor {
    match kind {
        Kind::GrpcPostgres => RGBColor(0, 114, 178),
        Kind::GrpcVersus => RGBColor(86, 180, 233),
        Kind::RestPostgres => RGBColor(230, 159, 0),
        Kind::RestH2Postgres => RGBColor(213, 94, 0),
        Kind::GrpcSqlite => RGBColor(0, 158, 115),
        Kind::GrpcSqliteSingle => RGBColor(204, 121, 167),
        Kind::Health => RGBColor(150, 150, 150),
        _ => RGBColor(0, 0, 0),
    }
}

/// The plot as SVG.
pub fn svg(results: &Results) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        // Readable on a dark page too.
        area.fill(&WHITE)?;
        let (panels, legend) = area.split_vertically(SIZE.1 - LEGEND);
        let (left, right) = panels.split_horizontally(SIZE.0 / 2);
        panel(&left, results, "calls a second", |medians| medians.rate)?;
        panel(&right, results, "p99 in ms", |medians| medians.p99_ms)?;
        draw_legend(&legend, results)?;
        area.present()?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn panel(area: &Area<'_>, results: &Results, title: &str, of: fn(Medians) -> f64) -> Result<()> {
    let callers = results.callers();
    let line = |kind: Kind| -> Vec<(f64, f64)> {
        let point = |callers: &usize| Some((*callers as f64, of(results.medians((kind, *callers))?)));
        callers.iter().filter_map(point).collect()
    };
    let heights = || results.closed.keys().flat_map(|kind| line(*kind)).map(|(_, height)| height);
    let (low, high) = (heights().fold(f64::MAX, f64::min), heights().fold(f64::MIN, f64::max));
    let places: Vec<f64> = callers.iter().map(|callers| *callers as f64).collect();
    let (first, last) = (places[0], places[places.len() - 1]);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{title}, by callers"), ("sans-serif", 19))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(64)
        .build_cartesian_2d(
            (first * 0.8..last * 1.25).log_scale().with_key_points(places),
            (low * 0.8..high * 1.25).log_scale().with_key_points(steps(low, high)),
        )?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .axis_style(RGBColor(120, 120, 120))
        .label_style(TEXT)
        .x_label_formatter(&|callers| grouped(*callers))
        .y_label_formatter(&|height| plain(*height))
        .draw()?;
    for kind in results.closed.keys() {
        let points = line(*kind);
        let style = colour(*kind).stroke_width(if *kind == Kind::GrpcPostgres { 4 } else { 2 });
        chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
        chart.draw_series(points.into_iter().map(|point| Circle::new(point, 4, colour(*kind).filled())))?;
    }
    Ok(())
}

/// 1, 2 and 5 of each power of ten between these.
fn steps(low: f64, high: f64) -> Vec<f64> {
    let powers = (-6..=9).map(|power| 10_f64.powi(power));
    let steps = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * power));
    steps.filter(|step| (low * 0.8..high * 1.25).contains(step)).collect()
}

/// As short as a label on an axis is.
fn plain(value: f64) -> String {
    if value >= 1.0 { grouped(value) } else { format!("{value}") }
}

fn draw_legend(area: &Area<'_>, results: &Results) -> Result<()> {
    let width = SIZE.0 as usize / LEGEND_COLUMNS;
    for (number, kind) in results.closed.keys().enumerate() {
        let x = i32::try_from(number % LEGEND_COLUMNS * width + 24)?;
        let y = i32::try_from(number / LEGEND_COLUMNS * 28 + 18)?;
        let style = colour(*kind);
        area.draw(&PathElement::new([(x, y), (x + 30, y)], style.stroke_width(2)))?;
        area.draw(&Circle::new((x + 15, y), 4, style.filled()))?;
        area.draw(&Text::new(kind.short_label(), (x + 40, y - 8), TEXT))?;
    }
    Ok(())
}
