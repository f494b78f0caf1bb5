//! The kernel interface of userfaultfd, as far as crate `userfaultfd` 0.9
//! uses it, declared by hand.
//!
//! The crate of this name on crates.io generates the same names from the
//! system's headers with bindgen, which needs libclang on the building
//! machine. These are facts of a stable kernel interface (`linux/userfaultfd.h`
//! in the kernel's user API); the tests compare each of them with
//! `linux-raw-sys`, which is generated from the kernel's own headers.
//!
//! Names and spelling are the header's, so the usual lints do not apply. The
//! version features exist for compatibility only: everything is always there.
#![no_std]
#![allow(non_camel_case_types, missing_docs)]

/// The ioctl type of a userfaultfd descriptor.
pub const UFFDIO: u8 = 0xAA;
/// The ioctl type of `/dev/userfaultfd`.
pub const USERFAULTFD_IOC: u8 = 0xAA;
/// The value of [`uffdio_api::api`].
pub const UFFD_API: u64 = 0xAA;

// ioctl numbers, which are also bit numbers in the `ioctls` words.
pub const _UFFDIO_REGISTER: u8 = 0x00;
pub const _UFFDIO_UNREGISTER: u8 = 0x01;
pub const _UFFDIO_WAKE: u8 = 0x02;
pub const _UFFDIO_COPY: u8 = 0x03;
pub const _UFFDIO_ZEROPAGE: u8 = 0x04;
pub const _UFFDIO_WRITEPROTECT: u8 = 0x06;
pub const _UFFDIO_CONTINUE: u8 = 0x07;
pub const _UFFDIO_API: u8 = 0x3f;

// uffd_msg::event
pub const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
pub const UFFD_EVENT_FORK: u8 = 0x13;
pub const UFFD_EVENT_REMAP: u8 = 0x14;
pub const UFFD_EVENT_REMOVE: u8 = 0x15;
pub const UFFD_EVENT_UNMAP: u8 = 0x16;

// uffd_msg_pagefault::flags
pub const UFFD_PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;
pub const UFFD_PAGEFAULT_FLAG_WP: u64 = 1 << 1;
pub const UFFD_PAGEFAULT_FLAG_MINOR: u64 = 1 << 2;

// uffdio_api::features
pub const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
pub const UFFD_FEATURE_EVENT_FORK: u64 = 1 << 1;
pub const UFFD_FEATURE_EVENT_REMAP: u64 = 1 << 2;
pub const UFFD_FEATURE_EVENT_REMOVE: u64 = 1 << 3;
pub const UFFD_FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
pub const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
pub const UFFD_FEATURE_EVENT_UNMAP: u64 = 1 << 6;
pub const UFFD_FEATURE_SIGBUS: u64 = 1 << 7;
pub const UFFD_FEATURE_THREAD_ID: u64 = 1 << 8;

// Modes.
pub const UFFDIO_REGISTER_MODE_MISSING: u64 = 1 << 0;
pub const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
pub const UFFDIO_REGISTER_MODE_MINOR: u64 = 1 << 2;
pub const UFFDIO_COPY_MODE_DONTWAKE: u64 = 1 << 0;
pub const UFFDIO_ZEROPAGE_MODE_DONTWAKE: u64 = 1 << 0;
pub const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub const UFFDIO_WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;
pub const UFFDIO_CONTINUE_MODE_DONTWAKE: u64 = 1 << 0;

/// Flag of the `userfaultfd` system call.
pub const UFFD_USER_MODE_ONLY: u32 = 1;

/// One message read from a userfaultfd, 32 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uffd_msg {
    pub event: u8,
    reserved: [u8; 7],
    pub arg: uffd_msg_arg,
}

/// What belongs to [`uffd_msg::event`].
#[repr(C)]
#[derive(Clone, Copy)]
pub union uffd_msg_arg {
    pub pagefault: uffd_msg_pagefault,
    pub fork: uffd_msg_fork,
    pub remap: uffd_msg_remap,
    pub remove: uffd_msg_remove,
    reserved: [u64; 3],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct uffd_msg_pagefault {
    pub flags: u64,
    pub address: u64,
    pub feat: uffd_msg_pagefault_feat,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub union uffd_msg_pagefault_feat {
    pub ptid: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct uffd_msg_fork {
    pub ufd: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct uffd_msg_remap {
    pub from: u64,
    pub to: u64,
    pub len: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct uffd_msg_remove {
    pub start: u64,
    pub end: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct uffdio_api {
    pub api: u64,
    pub features: u64,
    pub ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct uffdio_range {
    pub start: u64,
    pub len: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct uffdio_register {
    pub range: uffdio_range,
    pub mode: u64,
    pub ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct uffdio_copy {
    pub dst: u64,
    pub src: u64,
    pub len: u64,
    pub mode: u64,
    pub copy: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct uffdio_zeropage {
    pub range: uffdio_range,
    pub mode: u64,
    pub zeropage: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct uffdio_writeprotect {
    pub range: uffdio_range,
    pub mode: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct uffdio_continue {
    pub range: uffdio_range,
    pub mode: u64,
    pub mapped: i64,
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::mem::{offset_of, size_of};
    use linux_raw_sys::{general as raw, ioctl};

    macro_rules! same {
        ($($name:ident)*) => { $(assert_eq!(super::$name as u64, raw::$name as u64, stringify!($name));)* };
    }

    #[test]
    fn constants_are_the_kernels() {
        same! {
            UFFDIO UFFD_API _UFFDIO_REGISTER _UFFDIO_UNREGISTER _UFFDIO_WAKE _UFFDIO_COPY _UFFDIO_ZEROPAGE
            _UFFDIO_WRITEPROTECT _UFFDIO_CONTINUE _UFFDIO_API
            UFFD_EVENT_PAGEFAULT UFFD_EVENT_FORK UFFD_EVENT_REMAP UFFD_EVENT_REMOVE UFFD_EVENT_UNMAP
            UFFD_PAGEFAULT_FLAG_WRITE UFFD_PAGEFAULT_FLAG_WP UFFD_PAGEFAULT_FLAG_MINOR
            UFFD_FEATURE_PAGEFAULT_FLAG_WP UFFD_FEATURE_EVENT_FORK UFFD_FEATURE_EVENT_REMAP
            UFFD_FEATURE_EVENT_REMOVE UFFD_FEATURE_MISSING_HUGETLBFS UFFD_FEATURE_MISSING_SHMEM
            UFFD_FEATURE_EVENT_UNMAP UFFD_FEATURE_SIGBUS UFFD_FEATURE_THREAD_ID
            UFFDIO_REGISTER_MODE_MISSING UFFDIO_REGISTER_MODE_WP UFFDIO_REGISTER_MODE_MINOR
            UFFDIO_COPY_MODE_DONTWAKE UFFDIO_ZEROPAGE_MODE_DONTWAKE UFFD_USER_MODE_ONLY
        }
        // Not in linux-raw-sys.
        assert_eq!((super::UFFDIO_WRITEPROTECT_MODE_WP, super::UFFDIO_WRITEPROTECT_MODE_DONTWAKE), (1, 2));
        assert_eq!((super::UFFDIO_CONTINUE_MODE_DONTWAKE, super::USERFAULTFD_IOC), (1, 0xAA));
    }

    /// `_IOC(dir, 0xAA, number, size)`; dir 3 = read and write, 2 = read.
    fn number(dir: u32, nr: u8, size: usize) -> u32 {
        dir << 30 | (size as u32) << 16 | u32::from(super::UFFDIO) << 8 | u32::from(nr)
    }

    #[test]
    fn ioctl_numbers_and_with_them_sizes_are_the_kernels() {
        assert_eq!(number(3, super::_UFFDIO_API, size_of::<super::uffdio_api>()), ioctl::UFFDIO_API);
        assert_eq!(number(3, super::_UFFDIO_REGISTER, size_of::<super::uffdio_register>()), ioctl::UFFDIO_REGISTER);
        assert_eq!(number(2, super::_UFFDIO_UNREGISTER, size_of::<super::uffdio_range>()), ioctl::UFFDIO_UNREGISTER);
        assert_eq!(number(2, super::_UFFDIO_WAKE, size_of::<super::uffdio_range>()), ioctl::UFFDIO_WAKE);
        assert_eq!(number(3, super::_UFFDIO_COPY, size_of::<super::uffdio_copy>()), ioctl::UFFDIO_COPY);
        assert_eq!(number(3, super::_UFFDIO_ZEROPAGE, size_of::<super::uffdio_zeropage>()), ioctl::UFFDIO_ZEROPAGE);
        assert_eq!(number(3, super::_UFFDIO_CONTINUE, size_of::<super::uffdio_continue>()), ioctl::UFFDIO_CONTINUE);
        assert_eq!(
            number(3, super::_UFFDIO_WRITEPROTECT, size_of::<super::uffdio_writeprotect>()),
            ioctl::UFFDIO_WRITEPROTECT
        );
    }

    macro_rules! same_layout {
        ($($name:ident { $($field:ident),* })*) => { $(
            assert_eq!(size_of::<super::$name>(), size_of::<raw::$name>(), stringify!($name));
            $(assert_eq!(
                offset_of!(super::$name, $field), offset_of!(raw::$name, $field), stringify!($name.$field)
            );)*
        )* };
    }

    #[test]
    fn layouts_are_the_kernels() {
        same_layout! {
            uffd_msg { event, arg }
            uffdio_api { api, features, ioctls }
            uffdio_range { start, len }
            uffdio_register { range, mode, ioctls }
            uffdio_copy { dst, src, len, mode, copy }
            uffdio_zeropage { range, mode, zeropage }
            uffdio_writeprotect { range, mode }
            uffdio_continue { range, mode, mapped }
        }
        assert_eq!(size_of::<super::uffd_msg>(), 32);
        // The parts of the message have generated names in linux-raw-sys: known values.
        assert_eq!(offset_of!(super::uffd_msg_pagefault, address), 8);
        assert_eq!(offset_of!(super::uffd_msg_pagefault, feat), 16);
        assert_eq!(offset_of!(super::uffd_msg_remap, len), 16);
        assert_eq!(offset_of!(super::uffd_msg_remove, end), 8);
    }
}
