//! The last events of a thread, kept for the message of a violation.

use vmalab::fault::Signal;

/// Events kept.
const KEPT: usize = 32;

/// How an event ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    /// Well.
    Ok,
    /// With this value read.
    Value(u64),
    /// With a fresh mapping of this incarnation.
    Mapped(u64),
    /// With a signal.
    Signal(Signal),
    /// With an error number.
    Errno(vmalab::Errno),
}

/// One thing that a thread did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    /// Since the start of the run, when it ended.
    pub(crate) ns: u64,
    pub(crate) what: &'static str,
    pub(crate) mm: usize,
    pub(crate) addr: usize,
    pub(crate) len: usize,
    pub(crate) ended: Ended,
}

impl Event {
    /// One line, without the thread's name.
    pub(crate) fn line(&self) -> String {
        let Event { ns, what, mm, addr, len, ended } = self;
        let range = if *len == 0 { format!("{addr:#x}") } else { format!("{addr:#x}+{len:#x}") };
        let ended = match ended {
            Ended::Ok => String::new(),
            Ended::Value(value) => format!(" = {value:#x}"),
            Ended::Mapped(incarnation) => format!(" = incarnation {incarnation}"),
            Ended::Signal(signal) => format!(" = {signal:?}"),
            Ended::Errno(errno) => format!(" = {errno}"),
        };
        format!("{:>10}.{:03} us  mm {mm} {what} {range}{ended}", ns / 1000, ns % 1000)
    }
}

/// A ring of events.
#[derive(Default)]
pub(crate) struct Log {
    events: Vec<Event>,
    next: usize,
}

impl Log {
    pub(crate) fn push(&mut self, event: Event) {
        if self.events.len() < KEPT {
            self.events.push(event);
        } else {
            self.events[self.next % KEPT] = event;
        }
        self.next += 1;
    }

    /// Oldest first.
    pub(crate) fn events(&self) -> impl Iterator<Item = &Event> {
        let split = if self.events.len() < KEPT { 0 } else { self.next % KEPT };
        self.events[split..].iter().chain(&self.events[..split])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_in_order() {
        let mut log = Log::default();
        for ns in 0..100 {
            log.push(Event { ns, what: "load", mm: 0, addr: 0x1000, len: 0, ended: Ended::Ok });
        }
        let kept: Vec<u64> = log.events().map(|event| event.ns).collect();
        assert_eq!(kept, (68..100).collect::<Vec<u64>>());
        assert_eq!(log.events().next().unwrap().line(), "         0.068 us  mm 0 load 0x1000");
    }
}
