//! Sizes and durations as people type them, numbers as people read them.

use std::time::Duration;

/// Longest duration taken: beyond it somebody slipped a key.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Bytes from `64M`, `2G`, `4096`: K, M, G and T are powers of 1024; `KiB` and
/// `KB` forms mean the same.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err("write a whole number with K, M, G or T, for example 64M".into()),
    };
    let number: u64 =
        number.parse().map_err(|_| String::from("write a whole number with K, M, G or T, for example 64M"))?;
    number.checked_mul(1 << shift).ok_or_else(|| "larger than 64 bits can hold; take 64G or less".into())
}

/// A duration from `500ms`, `5s`, `2m`, `1h` or plain seconds (`5`, `0.5`).
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let usage = || String::from("write seconds or a unit, for example 5, 500ms, 5s or 2m");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| usage())?;
    let unit_seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(usage()),
    };
    match Duration::try_from_secs_f64(number * unit_seconds) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        _ => Err("longer than a year; a run of some seconds is the usual".into()),
    }
}

/// [`parse_duration`] of what must last.
pub fn parse_duration_above_zero(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("must be longer than 0, for example 500ms".into()),
        duration => Ok(duration),
    }
}

/// `4.21 us` of nanoseconds: three digits and the unit that fits.
pub fn nanoseconds(ns: f64) -> String {
    match ns {
        ns if ns < 999.5 => format!("{ns:.0} ns"),
        ns if ns < 999.5e3 => format!("{} us", three_digits(ns / 1e3)),
        ns if ns < 999.5e6 => format!("{} ms", three_digits(ns / 1e6)),
        ns => format!("{} s", three_digits(ns / 1e9)),
    }
}

/// `213 k`, `1.08 M`: a rate in three digits.
pub fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate < 999.5 => three_digits(rate),
        rate if rate < 999.5e3 => format!("{} k", three_digits(rate / 1e3)),
        rate if rate < 999.5e6 => format!("{} M", three_digits(rate / 1e6)),
        rate => format!("{} G", three_digits(rate / 1e9)),
    }
}

/// `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `64M`: the largest unit that divides the size.
pub fn size(bytes: u64) -> String {
    for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

fn three_digits(x: f64) -> String {
    match x {
        x if x < 9.995 => format!("{x:.2}"),
        x if x < 99.95 => format!("{x:.1}"),
        x => format!("{x:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("2g"), Ok(2 << 30));
        assert_eq!(parse_size("1T"), Ok(1 << 40));
        assert_eq!(parse_size("16KiB"), Ok(16 << 10));
        for bad in ["", "M", "-1", "1.5G", "12Q", "1 G", "99999999999999999999", "99999999T", "\u{661}K"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for bad in ["", "s", "-1", "5x", "1..2", "nan", "inf", "1e3", "999999h", ".", "5 s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert!(parse_duration_above_zero("0s").is_err());
        assert!(parse_duration_above_zero("0.0000000000001").is_err(), "rounds to nothing");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(nanoseconds(731.0), "731 ns");
        assert_eq!(nanoseconds(4_214.0), "4.21 us");
        assert_eq!(nanoseconds(999_600.0), "1.00 ms");
        assert_eq!(nanoseconds(2.5e9), "2.50 s");
        assert_eq!(rate(213_456.0), "213 k");
        assert_eq!(rate(1_084_000.0), "1.08 M");
        assert_eq!(rate(0.0), "0.00");
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(size(64 << 20), "64M");
        assert_eq!(size(4097), "4097");
    }
}
