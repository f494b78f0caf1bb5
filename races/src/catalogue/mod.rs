//! The entries, one file each.

mod attach_under_reader;
mod count_overflow;
mod detach_under_foreign_reader;
mod detached_unnoticed;
mod double_attach;
mod dup_window_count;
mod dup_window_flag;
mod exit_without_detach;
mod fault_deadlock;
mod fixed_as_two_calls;
mod fixed_gap;
mod foreign_mm_freed;
mod killed_writer;
mod lock_reinit;
mod lost_wake_up;
mod mprotect_unlocked;
mod no_grace_period;
mod number_of_foreign_mm;
mod number_reset_at_free;
mod reuse_other_mm;
mod reuse_other_range;
mod reuse_unattached;
mod sequence_wrap;
mod shrunk_unnoticed;
mod stack_rot;
mod stale_source;
mod tree_position_kept;
mod unlock_order;
mod visible_unfinished;
mod zap_after_unlock;
mod zap_before_drain;

use crate::race::Race;

/// Every entry, in the order of the docs: reuse, the later schemes, numbers and
/// waiting, tree and pages.
pub static CATALOGUE: &[&Race] = &[
    &reuse_unattached::RACE,
    &reuse_other_range::RACE,
    &reuse_other_mm::RACE,
    &number_of_foreign_mm::RACE,
    &attach_under_reader::RACE,
    &detach_under_foreign_reader::RACE,
    &double_attach::RACE,
    &dup_window_flag::RACE,
    &dup_window_count::RACE,
    &lock_reinit::RACE,
    &number_reset_at_free::RACE,
    &foreign_mm_freed::RACE,
    &tree_position_kept::RACE,
    &killed_writer::RACE,
    &no_grace_period::RACE,
    &detached_unnoticed::RACE,
    &shrunk_unnoticed::RACE,
    &unlock_order::RACE,
    &sequence_wrap::RACE,
    &count_overflow::RACE,
    &lost_wake_up::RACE,
    &fault_deadlock::RACE,
    &stack_rot::RACE,
    &fixed_gap::RACE,
    &visible_unfinished::RACE,
    &zap_before_drain::RACE,
    &mprotect_unlocked::RACE,
    &exit_without_detach::RACE,
    &zap_after_unlock::RACE,
    &stale_source::RACE,
    &fixed_as_two_calls::RACE,
];

/// The entry of that name.
pub fn find(name: &str) -> Option<&'static Race> {
    CATALOGUE.iter().copied().find(|race| race.name == name)
}
