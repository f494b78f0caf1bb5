//! Records what operations access: `conflicts-record REQUEST`, a
//! `vmalab_conflicts::Request` as JSON; prints the answer as JSON. `vmalab
//! conflicts` builds and calls it. Status 3: this machine cannot do it.

fn main() {
    let request = std::env::args().nth(1).unwrap_or_default();
    let request = serde_json::from_str(&request).unwrap_or_else(|error| fail(2, &format!("no request: {error}")));
    let answer = vmalab_conflicts::answer(&request).unwrap_or_else(|error| fail(3, &error));
    println!("{}", serde_json::to_string(&answer).expect("plain data"));
}

fn fail(status: i32, message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(status);
}
