//! Names that users type: workloads, locks and races, and the nearest one to a slip.

use crate::failure::Failure;

/// What a misspelt name may differ by (Jaro-Winkler similarity).
const SIMILAR: f64 = 0.7;

/// More names than this are not listed in an error.
const MANY: usize = 16;

/// `error: unknown WHAT 'given': did you mean ...`.
pub fn unknown(what: &str, given: &str, known: &[&str]) -> Failure {
    let mut near: Vec<(f64, &str)> = known
        .iter()
        .map(|name| (strsim::jaro_winkler(&given.to_lowercase(), name), *name))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.truncate(2);
    let near: Vec<String> = near.iter().map(|(_, name)| format!("'{name}'")).collect();
    let list = format!("'vmalab list {what}s' shows all");
    Failure::usage(match near.is_empty() {
        true if known.len() > MANY => format!("unknown {what} '{given}': {list}"),
        true => format!("unknown {what} '{given}': choose one of {}", known.join(", ")),
        false => format!("unknown {what} '{given}': did you mean {}? {list}", near.join(" or ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_the_nearest() {
        let known = ["app-start", "churn", "page-fault"];
        assert!(unknown("workload", "appstart", &known).to_string().contains("did you mean 'app-start'?"));
        assert!(unknown("workload", "CHURN", &known).to_string().contains("'churn'"));
        let far = unknown("workload", "zzz", &known).to_string();
        assert!(far.contains("choose one of app-start, churn, page-fault"), "{far}");
    }
}
