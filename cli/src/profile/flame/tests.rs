use super::*;

/// An element of the SVG.
#[derive(Debug, Default)]
struct Element {
    name: String,
    attributes: BTreeMap<String, String>,
    /// Its own text and that of the elements in it.
    text: String,
    parent: Option<usize>,
}

impl Element {
    fn number(&self, name: &str) -> usize {
        self.attributes[name].parse().expect(name)
    }

    fn percent(&self, name: &str) -> f64 {
        self.attributes[name].strip_suffix('%').and_then(|share| share.parse().ok()).expect(name)
    }
}

/// Text with its five entities put back. Whatever XML forbids is refused.
fn plain(text: &str) -> String {
    assert!(!text.contains(['<', '\u{fffe}', '\u{ffff}']) && !text.contains("]]>"), "{text:?}");
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    let mut parts = text.split('&');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (entity, rest) = part.split_once(';').unwrap_or_else(|| panic!("a bare & in {text:?}"));
        let of = [("lt", '<'), ("gt", '>'), ("amp", '&'), ("quot", '"'), ("apos", '\'')];
        plain.push(of.into_iter().find(|(name, _)| *name == entity).expect("an entity of XML").1);
        plain.push_str(rest);
    }
    plain
}

/// Reads as much of XML as we write, and panics at all else.
fn read(mut rest: &str) -> Vec<Element> {
    let mut elements: Vec<Element> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    while !rest.is_empty() {
        let text = if let Some(data) = rest.strip_prefix("<![CDATA[") {
            let (data, after) = data.split_once("]]>").expect("an end of the CDATA");
            rest = after;
            data.to_owned()
        } else if let Some(end) = rest.strip_prefix("</") {
            let (name, after) = end.split_once('>').expect("an end of the tag");
            assert_eq!(elements[open.pop().expect("an open element")].name, name);
            rest = after;
            continue;
        } else if let Some(tag) = rest.strip_prefix('<') {
            let mut element = Element { parent: open.last().copied(), ..Element::default() };
            assert!(element.parent.is_some() || elements.is_empty(), "two roots");
            let end = tag.find([' ', '>']).expect("an end of the name");
            element.name = tag[..end].to_owned();
            assert!(element.name.chars().all(|c| c.is_ascii_alphanumeric()), "{}", element.name);
            rest = &tag[end..];
            while let Some(attribute) = rest.strip_prefix(' ') {
                let (name, value) = attribute.split_once("=\"").expect("a quoted value");
                let (value, after) = value.split_once('"').expect("an end of the value");
                let before = element.attributes.insert(name.to_owned(), plain(value));
                assert!(before.is_none(), "{name} twice");
                rest = after;
            }
            rest = rest.strip_prefix('>').expect("an end of the tag");
            open.push(elements.len());
            elements.push(element);
            continue;
        } else {
            let end = rest.find('<').unwrap_or(rest.len());
            let text = plain(&rest[..end]);
            rest = &rest[end..];
            text
        };
        assert!(!open.is_empty(), "{text:?} is outside");
        open.iter().for_each(|&at| elements[at].text.push_str(&text));
    }
    assert!(open.is_empty(), "not closed: {open:?}");
    elements
}

/// Samples as perf tells them, from the innermost function on.
fn stacks(samples: &[(&str, &[&str], usize)]) -> Stacks {
    let mut script = String::new();
    for (thread, functions, times) in samples {
        let lines: String = functions.iter().map(|name| format!("\t 1 {name}\n")).collect();
        script.push_str(&format!("{thread} 1 \n{lines}\n").repeat(*times));
    }
    Stacks::parse(&script)
}

const THREAD: &str = "vmalab_workloads::runner::thread (/vmalab)";
const HANDLER: &str = "vmalab_fault_handler::sigbus::on_sigbus (/vmalab)";
const LOOKUP: &str = "<vmalab::lock::Lock<'_> as vmalab::lock::L>::x::vmalab::lock::vma_lookup (/vmalab)";
const INSTALL: &str = "<vmalab_fault_handler::mmu::UffdMmu as vmalab::mmu::Mmu>::install (/vmalab)";

/// Two threads, three phases, a kernel function, one that is seldom there.
fn some() -> Stacks {
    stacks(&[
        ("fault-0", &[LOOKUP, HANDLER, "__restore_rt (/libc)", THREAD], 300),
        ("fault-1", &["mfill ([kernel.kallsyms])", INSTALL, HANDLER, "__restore_rt (/libc)", THREAD], 500),
        ("fault-1", &[INSTALL, HANDLER, "__restore_rt (/libc)", THREAD], 101),
        ("main", &["main (/vmalab)"], 1098),
        ("seldom", &["main (/vmalab)"], 1),
    ])
}

fn frames_of(elements: &[Element]) -> Vec<&Element> {
    elements.iter().filter(|element| element.attributes.contains_key("data-at")).collect()
}

fn drawn_of(stacks: &Stacks) -> Vec<Element> {
    read(&graph("a title", "a line", stacks))
}

/// Name and samples.
fn told(frame: &Element) -> (&str, usize) {
    (&frame.attributes["data-name"], frame.number("data-samples"))
}

#[test]
fn frames_stand_on_their_callers() {
    let elements = drawn_of(&some());
    let graph = elements.iter().find(|e| e.attributes.get("class").is_some_and(|c| c == "graph")).unwrap();
    let frames = frames_of(&elements);
    let bottom = graph.number("height") - ROW;
    assert_eq!((told(frames[0]), frames[0].number("y")), (("all", 2000), bottom));
    // Whatever lies directly on a frame, by place and samples alone.
    for below in &frames {
        let (at, end) = (below.number("data-at"), below.number("data-at") + below.number("data-samples"));
        let on = frames.iter().filter(|frame| {
            let from = frame.number("data-at");
            frame.number("y") + ROW == below.number("y") && from >= at && from + frame.number("data-samples") <= end
        });
        let on: Vec<_> = on.collect();
        let samples: usize = on.iter().map(|frame| frame.number("data-samples")).sum();
        let width: f64 = on.iter().map(|frame| frame.percent("width")).sum();
        assert!(samples <= end - at, "{below:?}");
        assert!(width <= below.percent("width") + 1e-3, "{below:?}");
        assert!(
            on.windows(2).all(|pair| pair[0].percent("x") + pair[0].percent("width") <= pair[1].percent("x") + 1e-3)
        );
    }
    // Each has a caller.
    for frame in &frames[1..] {
        let at = frame.number("data-at");
        let called = |caller: &&&Element| {
            caller.number("y") == frame.number("y") + ROW
                && (caller.number("data-at")..caller.number("data-at") + caller.number("data-samples")).contains(&at)
        };
        assert_eq!(frames.iter().filter(called).count(), 1, "{frame:?}");
    }
    assert!(frames.iter().all(|frame| frame.number("y") <= bottom));
}

#[test]
fn frames_are_named_and_have_the_colour_of_their_phase() {
    let elements = drawn_of(&some());
    let frames = frames_of(&elements);
    let of = |name: &str| *frames.iter().find(|frame| told(frame).0 == name).unwrap();
    assert_eq!(told(of("fault")), ("fault", 901), "threads that do the same are one");
    assert_eq!(told(of("[lookup]")), ("[lookup]", 300));
    assert_eq!(told(of("[install]")), ("[install]", 601));
    assert_eq!(told(of("mfill")), ("mfill", 500));
    assert_eq!(
        of("install").text,
        "<vmalab_fault_handler::mmu::UffdMmu as vmalab::mmu::Mmu>::install\n601 samples, 30.1\u{a0}%install"
    );
    for (name, class) in [("thread", "caller"), ("vma_lookup", "lookup"), ("mfill", "install"), ("main", "caller")] {
        assert_eq!(of(name).attributes["class"], class, "{name}");
    }
    let kernel = elements.iter().filter(|e| e.attributes.get("class").is_some_and(|c| c == "kernel"));
    let kernel: Vec<_> = kernel.map(|e| elements[e.parent.unwrap()].attributes["data-name"].as_str()).collect();
    assert_eq!(kernel, ["mfill"]);
    let legend = elements.iter().filter(|e| e.attributes.get("class").is_some_and(|c| c.starts_with("key ")));
    let legend: Vec<&str> = legend.map(|key| key.text.as_str()).collect();
    assert_eq!(legend, ["lookup 15.0\u{a0}%", "install 30.1\u{a0}%", "other 55.0\u{a0}%"]);
    let seldom = |frame: &&Element| frame.text.contains("seldom");
    assert!(!frames.iter().any(seldom), "1 of 2000");
}

#[test]
fn names_are_escaped() {
    for evil in [
        "<script>alert('&')</script>\"",
        "a&b;]]>",
        "\u{1}\u{1b}\u{7f}\u{fffe}\u{85}",
        "'\"<!--",
        "f::",
        "\u{1f980}::<\u{e9}>",
    ] {
        let script = format!("{evil} 1 \n\t 1 {evil} (/x)\n\n");
        let stacks = Stacks::parse(&script);
        assert_eq!(stacks.samples.len(), 1, "{evil:?}");
        let elements = read(&graph(evil, evil, &stacks));
        let shown = clean(evil);
        assert_eq!(
            elements.iter().filter(|element| element.parent == Some(0) && element.text == shown).count(),
            2,
            "{evil:?}"
        );
        let functions =
            frames_of(&elements).into_iter().filter(|frame| frame.text.starts_with(&format!("{shown}\n1 ")));
        assert!(functions.count() >= 1, "{evil:?}");
        assert_eq!(elements.iter().filter(|element| element.name == "script").count(), 1);
    }
}

#[test]
fn little_is_still_a_graph() {
    for (stacks, names) in [
        (Stacks::default(), vec!["all"]),
        (stacks(&[("main", &["main (/vmalab)"], 1)]), vec!["all", "main", "[other]", "main"]),
    ] {
        let elements = drawn_of(&stacks);
        let frames = frames_of(&elements);
        assert_eq!(frames.iter().map(|frame| told(frame).0).collect::<Vec<_>>(), names);
        let svg = graph("", "", &stacks);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "a frame is nowhere");
    }
}

#[test]
fn the_graph_is_the_same_each_time() {
    let turned = Stacks { samples: some().samples.into_iter().rev().collect() };
    assert_eq!(graph("t", "s", &some()), graph("t", "s", &turned));
}

#[test]
fn the_graph_needs_nothing_else() {
    let svg =
        graph("t", "s", &some()).replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xhtml", "");
    for loads in ["http:", "https:", "href", "src=", "@import", "url(", "fetch(", "import("] {
        assert!(!svg.contains(loads), "{loads}");
    }
}

#[test]
fn labels_fit() {
    assert_eq!(fitted("lookup", 6.0 + 6.0 * LETTER + 0.1), "lookup");
    assert_eq!(fitted("lookup", 6.0 + 4.0 * LETTER + 0.1), "loo\u{2026}");
    assert_eq!(fitted("lookup", 6.0 + 2.0 * LETTER + 0.1), "");
    assert_eq!(fitted("\u{e9}\u{e9}\u{e9}\u{e9}", 6.0 + 3.0 * LETTER + 0.1), "\u{e9}\u{e9}\u{2026}");
}
