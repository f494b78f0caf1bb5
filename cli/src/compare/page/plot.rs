//! What all charts are made of: scales, ticks, axes, paths, labels. Charts are
//! SVG inside the page and take their colours from its style sheet.

use maud::{Markup, html};

/// A chart is drawn for a wide page and once more for a narrow one, so that its
/// letters have one size; the style sheet shows the one that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// As wide as the page.
    Wide,
    /// Half of it.
    Half,
    /// A telephone's.
    Narrow,
}

impl Size {
    /// Units of the drawing, which are pixels if the page is as wide as planned.
    pub fn width(self) -> f64 {
        match self {
            Size::Wide => 1000.0,
            Size::Half => 484.0,
            Size::Narrow => 364.0,
        }
    }

    fn class(self) -> &'static str {
        match self {
            Size::Wide | Size::Half => "wide",
            Size::Narrow => "narrow",
        }
    }
}

/// A chart with its title above and what to know about it below.
pub fn figure(title: &str, note: &Markup, wide: Size, draw: impl Fn(Size) -> (f64, Markup)) -> Markup {
    html! {
        figure {
            figcaption { (title) }
            @for size in [wide, Size::Narrow] {
                @let (height, drawing) = draw(size);
                svg class=(size.class()) viewBox=(format!("0 0 {} {height:.0}", size.width())) role="img" aria-label=(title) {
                    (drawing)
                }
            }
            div.note { (note) }
        }
    }
}

/// From values to places on the page.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    log: bool,
    domain: (f64, f64),
    range: (f64, f64),
}

impl Scale {
    /// Equal steps are equally far apart.
    pub fn linear(domain: (f64, f64), range: (f64, f64)) -> Scale {
        Scale { log: false, domain, range }
    }

    /// Equal factors are equally far apart. The domain is above 0.
    pub fn log(domain: (f64, f64), range: (f64, f64)) -> Scale {
        Scale { log: true, domain, range }
    }

    /// The place of a value.
    pub fn at(&self, value: f64) -> f64 {
        let scaled = |value: f64| if self.log { value.ln() } else { value };
        let (low, high) = (scaled(self.domain.0), scaled(self.domain.1));
        let share = if high > low { (scaled(value) - low) / (high - low) } else { 0.5 };
        self.range.0 + share * (self.range.1 - self.range.0)
    }

    /// Round values within the domain, about `count` of them.
    pub fn ticks(&self, count: usize) -> Vec<f64> {
        let (low, high) = self.domain;
        // Less than a factor of three looks linear.
        if !self.log || high / low < 3.0 {
            return steps(low, high, count);
        }
        let decades = (low.log10().floor() as i32)..=(high.log10().ceil() as i32);
        let of = |digits: &[f64]| -> Vec<f64> {
            let all = decades.clone().flat_map(|decade| digits.iter().map(move |digit| digit * 10_f64.powi(decade)));
            all.filter(|tick| (low..=high).contains(tick)).collect()
        };
        let fine = of(&[1.0, 2.0, 5.0]);
        let coarse = of(&[1.0]);
        if fine.len() <= count + 2 || coarse.len() < 2 { fine } else { coarse }
    }
}

/// Multiples of 1, 2 or 5 times a power of ten.
fn steps(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count.max(1) as f64;
    if rough <= 0.0 || !rough.is_finite() {
        return vec![low];
    }
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|n| n as f64 * step).collect()
}

/// A coordinate.
pub fn px(place: f64) -> String {
    let text = format!("{place:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Straight lines from point to point.
pub fn path(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    let mut text = String::new();
    for (i, (x, y)) in points.into_iter().enumerate() {
        text.push_str(if i == 0 { "M" } else { "L" });
        text.push_str(&format!("{} {}", px(x), px(y)));
    }
    text
}

/// A line of the grid.
pub fn line(class: &str, from: (f64, f64), to: (f64, f64)) -> Markup {
    html! { line class=(class) x1=(px(from.0)) y1=(px(from.1)) x2=(px(to.0)) y2=(px(to.1)) {} }
}

/// Text that begins at, ends at (`end`) or is centred on (`middle`) a place.
pub fn text(class: &str, anchor: &str, at: (f64, f64), content: &str) -> Markup {
    html! { text class=(class) text-anchor=(anchor) x=(px(at.0)) y=(px(at.1)) { (content) } }
}

/// Moves labels apart, from the top down, so that no two are closer than `gap`;
/// none goes below `bottom`.
pub fn spread(places: &[f64], gap: f64, bottom: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by(|&a, &b| places[a].total_cmp(&places[b]));
    let mut spread = places.to_vec();
    for pair in order.windows(2) {
        spread[pair[1]] = spread[pair[1]].max(spread[pair[0]] + gap);
    }
    let mut limit = bottom;
    for &i in order.iter().rev() {
        spread[i] = spread[i].min(limit);
        limit = spread[i] - gap;
    }
    spread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_meet_their_ends() {
        let linear = Scale::linear((0.0, 10.0), (100.0, 0.0));
        assert_eq!((linear.at(0.0), linear.at(5.0), linear.at(10.0)), (100.0, 50.0, 0.0));
        let log = Scale::log((1.0, 100.0), (0.0, 10.0));
        assert!((log.at(10.0) - 5.0).abs() < 1e-9);
        assert_eq!(Scale::linear((3.0, 3.0), (0.0, 10.0)).at(3.0), 5.0, "nothing to spread");
    }

    #[test]
    fn ticks_are_round_and_inside() {
        let ticks = |scale: Scale, count| scale.ticks(count);
        assert_eq!(ticks(Scale::linear((0.0, 97.0), (0.0, 1.0)), 5), [0.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!(ticks(Scale::log((1.0, 100.0), (0.0, 1.0)), 6), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(ticks(Scale::log((900.0, 2e6), (0.0, 1.0)), 4), [1e3, 1e4, 1e5, 1e6]);
        assert_eq!(ticks(Scale::log((0.8, 1.3), (0.0, 1.0)), 5).len(), 6, "a small factor is divided evenly");
        assert_eq!(ticks(Scale::linear((2.0, 2.0), (0.0, 1.0)), 5), [2.0]);
    }

    #[test]
    fn labels_keep_apart_and_in_order() {
        assert_eq!(spread(&[10.0, 12.0, 50.0], 14.0, 100.0), [10.0, 24.0, 50.0]);
        assert_eq!(spread(&[95.0, 90.0], 14.0, 100.0), [100.0, 86.0]);
    }

    #[test]
    fn paths() {
        assert_eq!(path([(0.0, 1.25), (10.0, 2.0)]), "M0 1.2L10 2");
    }
}
