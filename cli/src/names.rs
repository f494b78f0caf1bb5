//! Names that users type: workloads and locks, and the nearest one to a slip.

use crate::failure::Failure;

/// What a misspelt name may differ by (Jaro-Winkler similarity).
const SIMILAR: f64 = 0.7;

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
    if near.is_empty() {
        Failure::usage(format!("unknown {what} '{given}': choose one of {}", known.join(", ")))
    } else {
        let list = if what == "workload" { "workloads" } else { "locks" };
        Failure::usage(format!(
            "unknown {what} '{given}': did you mean {}? 'vmalab list {list}' shows all",
            near.join(" or ")
        ))
    }
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
