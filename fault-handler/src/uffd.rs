//! One userfaultfd: how it is created, and its ioctls with errors told apart.
//!
//! Crate `userfaultfd` does what it covers: registration, waking, reading and
//! decoding messages. This module adds what it lacks (`UFFDIO_MOVE`, COPY with
//! MODE_WP, partial results), and creates the descriptor itself, because the
//! crate gives up where `/dev/userfaultfd` exists but may not be opened.
//!
//! Every ioctl here is async-signal-safe, but for errno: handlers save it.
//! Those that install pages do without libc, whose way from the call to the
//! kernel (a guard on the stack, errno) costs a fault five cache lines.

use linux_raw_sys::general as raw;
use nix::errno::Errno;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::OnceLock;
use userfaultfd::RegisterMode;
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::stats::{self, Counter};

/// The ioctls, as `linux/userfaultfd.h` numbers them.
mod ioctls {
    use linux_raw_sys::general::{
        uffdio_api, uffdio_copy, uffdio_move, uffdio_poison, uffdio_range, uffdio_writeprotect, uffdio_zeropage,
    };
    use nix::errno::Errno;
    use std::arch::asm;
    use std::os::fd::RawFd;

    const TYPE: u8 = 0xAA;

    /// A request like `nix::ioctl_readwrite!`, without libc.
    macro_rules! direct {
        ($name:ident, $number:literal, $argument:ty) => {
            /// # Safety
            /// `arg` is what the kernel reads and writes.
            #[inline(always)]
            pub unsafe fn $name(fd: RawFd, arg: *mut $argument) -> Result<(), Errno> {
                const REQUEST: usize = nix::request_code_readwrite!(TYPE, $number, size_of::<$argument>()) as usize;
                // SAFETY: the caller's promise.
                unsafe { ioctl(fd, REQUEST, arg.cast()) }
            }
        };
    }

    direct!(copy, 3, uffdio_copy);
    direct!(zeropage, 4, uffdio_zeropage);
    direct!(move_pages, 5, uffdio_move);
    direct!(write_protect, 6, uffdio_writeprotect);

    /// `ioctl(2)`, of which only success and failure matter. Leaves errno alone.
    ///
    /// # Safety
    /// As the request demands.
    #[inline(always)]
    unsafe fn ioctl(fd: RawFd, request: usize, arg: *mut ()) -> Result<(), Errno> {
        let result: isize;
        // SAFETY: the kernel's calling convention on x86-64; what the request does
        // to memory is the caller's affair.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") libc::SYS_ioctl as isize => result,
                in("rdi") fd as isize,
                in("rsi") request,
                in("rdx") arg,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack, preserves_flags),
            );
        }
        if result < 0 { Err(Errno::from_raw(-result as i32)) } else { Ok(()) }
    }

    nix::ioctl_readwrite!(api, TYPE, 0x3f, uffdio_api);
    nix::ioctl_read!(wake, TYPE, 2, uffdio_range);
    nix::ioctl_readwrite!(poison, TYPE, 8, uffdio_poison);
    // USERFAULTFD_IOC_NEW of /dev/userfaultfd: the argument is the flag word.
    nix::ioctl_write_int_bad!(new_from_device, nix::request_code_none!(TYPE, 0));
}

const COPY_MODE_DONTWAKE: u64 = 1;
const COPY_MODE_WP: u64 = 2;
const ZEROPAGE_MODE_DONTWAKE: u64 = 1;
const WRITEPROTECT_MODE_WP: u64 = 1;
const WRITEPROTECT_MODE_DONTWAKE: u64 = 2;
const MOVE_MODE_DONTWAKE: u64 = 1;

/// How a userfaultfd came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The system call with full rights: root (CAP_SYS_PTRACE), or
    /// `vm.unprivileged_userfaultfd` = 1.
    Syscall,
    /// `/dev/userfaultfd`, which grants full rights to whoever may open it.
    Device,
    /// The system call with UFFD_USER_MODE_ONLY: faults taken inside system
    /// calls are not served (they return EFAULT). Needs no rights, Linux 5.11.
    UserModeOnly,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Syscall => "userfaultfd(2)",
            Origin::Device => "/dev/userfaultfd",
            Origin::UserModeOnly => "userfaultfd(2) with UFFD_USER_MODE_ONLY",
        })
    }
}

/// What a userfaultfd is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// The most that can be had: system call, then device, then user mode only.
    Best,
    /// Faults inside system calls must be served too: system call, then device.
    Kernel,
    /// Faults of user code are all that matters: user mode only first.
    User,
}

impl Privilege {
    fn order(self) -> &'static [Origin] {
        match self {
            Privilege::Best => &[Origin::Syscall, Origin::Device, Origin::UserModeOnly],
            Privilege::Kernel => &[Origin::Syscall, Origin::Device],
            // Before 5.11 the flag is EINVAL, and the plain call is unprivileged.
            Privilege::User => &[Origin::UserModeOnly, Origin::Syscall, Origin::Device],
        }
    }
}

/// `UFFD_FEATURE_*` bits by name.
pub mod feature {
    use linux_raw_sys::general as raw;
    /// Write protection (Linux 5.7).
    pub const WP: u64 = raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64;
    /// SIGBUS instead of a message (4.14).
    pub const SIGBUS: u64 = raw::UFFD_FEATURE_SIGBUS as u64;
    /// Messages name the thread (4.14).
    pub const THREAD_ID: u64 = raw::UFFD_FEATURE_THREAD_ID as u64;
    /// Messages carry the address to the byte (5.18).
    pub const EXACT_ADDRESS: u64 = raw::UFFD_FEATURE_EXACT_ADDRESS as u64;
    /// UFFDIO_POISON (6.6).
    pub const POISON: u64 = raw::UFFD_FEATURE_POISON as u64;
    /// UFFDIO_MOVE (6.8).
    pub const MOVE: u64 = raw::UFFD_FEATURE_MOVE as u64;
    /// Every bit with the kernel's name for it.
    pub const NAMES: [(u64, &str); 17] = [
        (1 << 0, "PAGEFAULT_FLAG_WP"),
        (1 << 1, "EVENT_FORK"),
        (1 << 2, "EVENT_REMAP"),
        (1 << 3, "EVENT_REMOVE"),
        (1 << 4, "MISSING_HUGETLBFS"),
        (1 << 5, "MISSING_SHMEM"),
        (1 << 6, "EVENT_UNMAP"),
        (1 << 7, "SIGBUS"),
        (1 << 8, "THREAD_ID"),
        (1 << 9, "MINOR_HUGETLBFS"),
        (1 << 10, "MINOR_SHMEM"),
        (1 << 11, "EXACT_ADDRESS"),
        (1 << 12, "WP_HUGETLBFS_SHMEM"),
        (1 << 13, "WP_UNPOPULATED"),
        (1 << 14, "POISON"),
        (1 << 15, "WP_ASYNC"),
        (1 << 16, "MOVE"),
    ];
}

/// One way of creating a userfaultfd, and how it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The way.
    pub origin: Origin,
    /// `Err`: why not.
    pub result: Result<(), Errno>,
}

/// Why no userfaultfd could be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The kernel has none (ENOSYS everywhere).
    Missing,
    /// It has, but not for us.
    Denied(Vec<Attempt>),
    /// The kernel lacks features (bits of [`feature`]) that cannot be done without.
    Features(u64),
    /// The UFFDIO_API handshake failed.
    Handshake(Errno),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Missing => f.write_str(
                "the kernel has no userfaultfd: use one built with CONFIG_USERFAULTFD=y (Linux 5.11 or later)",
            ),
            OpenError::Denied(attempts) if attempts.iter().any(|a| matches!(a.result, Err(Errno::EMFILE | Errno::ENFILE))) => {
                f.write_str("no descriptor is left for a userfaultfd: raise the limit on open files (ulimit -n), or ask for fewer address spaces")
            }
            OpenError::Denied(attempts) => {
                f.write_str("no right to create a userfaultfd (")?;
                for (i, attempt) in attempts.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "; " };
                    match attempt.result {
                        Ok(()) => write!(f, "{comma}{}: ok", attempt.origin)?,
                        Err(errno) => write!(f, "{comma}{}: {errno}", attempt.origin)?,
                    }
                }
                f.write_str(
                    "): run as root, give CAP_SYS_PTRACE, set vm.unprivileged_userfaultfd=1, or allow the \
                     system call in the container's seccomp profile",
                )
            }
            OpenError::Features(bits) => {
                f.write_str("the kernel's userfaultfd lacks")?;
                for (bit, name) in feature::NAMES {
                    if bits & bit != 0 {
                        write!(f, " {name}")?;
                    }
                }
                f.write_str(": Linux 5.7 or later is needed, with CONFIG_HAVE_ARCH_USERFAULTFD_WP")
            }
            OpenError::Handshake(errno) => write!(f, "the UFFDIO_API handshake failed: {errno}"),
        }
    }
}

impl std::error::Error for OpenError {}

/// What an ioctl answered when it did not do everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UffdError {
    /// EEXIST: something is there already.
    Exists,
    /// EAGAIN: stopped after `done` bytes; go on from there.
    Again {
        /// Bytes done before.
        done: usize,
    },
    /// ENOENT: nothing is there to move, or the range is not registered.
    NoEntry,
    /// ESRCH: the address space is being torn down.
    Gone,
    /// ENOMEM.
    NoMemory,
    /// EFAULT: the source cannot be read.
    Fault,
    /// EBUSY: the page is pinned or shared, it cannot be moved.
    Busy,
    /// Anything else.
    Other(Errno),
}

impl UffdError {
    #[cold]
    /// `done`: the ioctl's result word, in which a negative number repeats the error.
    fn from_ioctl(errno: Errno, done: i64) -> UffdError {
        match errno {
            Errno::EEXIST => UffdError::Exists,
            Errno::EAGAIN => UffdError::Again { done: usize::try_from(done).unwrap_or(0) },
            Errno::ENOENT => UffdError::NoEntry,
            Errno::ESRCH => UffdError::Gone,
            Errno::ENOMEM => UffdError::NoMemory,
            Errno::EFAULT => UffdError::Fault,
            Errno::EBUSY => UffdError::Busy,
            other => UffdError::Other(other),
        }
    }
}

/// A userfaultfd after its handshake. Closed when dropped.
pub struct Uffd {
    inner: userfaultfd::Uffd,
    origin: Origin,
    features: u64,
}

/// Creates a descriptor one way, without handshake.
fn open_origin(origin: Origin) -> Result<OwnedFd, Errno> {
    let mut flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    if origin == Origin::UserModeOnly {
        flags |= raw::UFFD_USER_MODE_ONLY as i32;
    }
    let fd = match origin {
        Origin::Syscall | Origin::UserModeOnly => {
            // SAFETY: the call takes no pointers.
            Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })? as i32
        }
        Origin::Device => {
            let device = nix::fcntl::open(
                "/dev/userfaultfd",
                nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CLOEXEC,
                nix::sys::stat::Mode::empty(),
            )?;
            // SAFETY: a valid descriptor, and a flag word as argument.
            unsafe { ioctls::new_from_device(device.as_raw_fd(), flags)? }
        }
    };
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// UFFDIO_API: asks for `features`, returns what the kernel offers.
fn handshake(fd: BorrowedFd<'_>, features: u64) -> Result<u64, Errno> {
    let mut api = raw::uffdio_api { api: u64::from(raw::UFFD_API), features, ioctls: 0 };
    // SAFETY: `api` is what the ioctl reads and writes.
    unsafe { ioctls::api(fd.as_raw_fd(), &mut api) }?;
    Ok(api.features)
}

fn open_first(order: &[Origin]) -> Result<(OwnedFd, Origin), OpenError> {
    let mut attempts = Vec::new();
    for &origin in order {
        match open_origin(origin) {
            Ok(fd) => {
                tracing::debug!(%origin, refused = ?attempts, "userfaultfd created");
                return Ok((fd, origin));
            }
            Err(errno) => attempts.push(Attempt { origin, result: Err(errno) }),
        }
    }
    let missing = |a: &Attempt| matches!(a.result, Err(Errno::ENOSYS | Errno::ENOENT));
    Err(if attempts.iter().all(missing) { OpenError::Missing } else { OpenError::Denied(attempts) })
}

/// What the kernel offers. A handshake that asks for more fails, so it is
/// asked once, through a descriptor of its own.
fn offered_features() -> Result<u64, OpenError> {
    static OFFERED: OnceLock<u64> = OnceLock::new();
    if let Some(&features) = OFFERED.get() {
        return Ok(features);
    }
    let (probe, _) = open_first(Privilege::User.order())?;
    let features = handshake(probe.as_fd(), 0).map_err(OpenError::Handshake)?;
    Ok(*OFFERED.get_or_init(|| features))
}

impl Uffd {
    /// Creates a userfaultfd with the features `needed`, and those of `wanted`
    /// that the kernel has. Never ask for an EVENT feature: it would make
    /// madvise and munmap wait for us.
    ///
    /// # Errors
    /// [`OpenError`], which says what would help.
    pub fn open(privilege: Privilege, needed: u64, wanted: u64) -> Result<Uffd, OpenError> {
        let offered = offered_features()?;
        if needed & !offered != 0 {
            return Err(OpenError::Features(needed & !offered));
        }
        let features = needed | wanted & offered;
        let (fd, origin) = open_first(privilege.order())?;
        handshake(fd.as_fd(), features).map_err(OpenError::Handshake)?;
        // SAFETY: `into_raw_fd` gives up the only owner of this descriptor.
        let inner = unsafe { userfaultfd::Uffd::from_raw_fd(fd.into_raw_fd()) };
        Ok(Uffd { inner, origin, features })
    }

    /// How it was created.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The features it was opened with ([`feature`]).
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The crate's object, to read messages from.
    pub fn messages(&self) -> &userfaultfd::Uffd {
        &self.inner
    }

    /// UFFDIO_REGISTER for missing pages and write protection.
    ///
    /// # Errors
    /// The kernel's.
    pub fn register(&self, range: PageRange) -> Result<(), Errno> {
        let start = range.start().get() as *mut libc::c_void;
        let mode = RegisterMode::MISSING | RegisterMode::WRITE_PROTECT;
        match self.inner.register_with_mode(start, range.bytes(), mode) {
            Ok(_) => Ok(()),
            Err(userfaultfd::Error::SystemError(errno)) => Err(Errno::from_raw(errno as i32)),
            Err(_) => Err(Errno::EIO),
        }
    }

    /// UFFDIO_COPY of whole pages from `src` to `dst`, waking nobody.
    /// `protected`: the pages appear write-protected.
    ///
    /// # Safety
    /// The bytes from `src` may be read as page contents. (An unreadable
    /// source is [`UffdError::Fault`], not undefined.)
    ///
    /// # Errors
    /// [`UffdError`].
    #[inline]
    pub unsafe fn copy(&self, dst: VirtAddr, src: *const u8, len: usize, protected: bool) -> Result<(), UffdError> {
        let mode = COPY_MODE_DONTWAKE | if protected { COPY_MODE_WP } else { 0 };
        let mut arg = raw::uffdio_copy { dst: dst.get() as u64, src: src as u64, len: len as u64, mode, copy: 0 };
        stats::count(Counter::HostUffd);
        // SAFETY: `arg` is what the ioctl reads and writes; it fills pages that
        // are registered with this userfaultfd, hence belong to a region.
        match unsafe { ioctls::copy(self.inner.as_raw_fd(), &mut arg) } {
            Ok(_) => Ok(()),
            Err(errno) => Err(UffdError::from_ioctl(errno, arg.copy)),
        }
    }

    /// UFFDIO_ZEROPAGE of one page, waking nobody. A store to it later passes
    /// without a fault that we see (the host's own copy-on-write).
    ///
    /// # Errors
    /// [`UffdError`].
    #[inline]
    pub fn zeropage(&self, page: VirtAddr) -> Result<(), UffdError> {
        self.zero_pages(PageRange::sized(page, PAGE_SIZE))
    }

    /// The same for several pages.
    ///
    /// # Errors
    /// [`UffdError`].
    #[inline]
    pub fn zero_pages(&self, range: PageRange) -> Result<(), UffdError> {
        let range = uffdio_range(range);
        let mut arg = raw::uffdio_zeropage { range, mode: ZEROPAGE_MODE_DONTWAKE, zeropage: 0 };
        stats::count(Counter::HostUffd);
        // SAFETY: as in `copy`.
        match unsafe { ioctls::zeropage(self.inner.as_raw_fd(), &mut arg) } {
            Ok(_) => Ok(()),
            Err(errno) => Err(UffdError::from_ioctl(errno, arg.zeropage)),
        }
    }

    /// UFFDIO_MOVE of whole pages, waking nobody. `dst` must be registered
    /// here; write protection of the source is not taken along.
    ///
    /// # Safety
    /// Nothing but page faults that we serve depends on the pages at `src`.
    ///
    /// # Errors
    /// [`UffdError`]; `Other(EINVAL)` before Linux 6.8.
    pub unsafe fn move_pages(&self, dst: VirtAddr, src: VirtAddr, len: usize) -> Result<(), UffdError> {
        let mut arg = raw::uffdio_move {
            dst: dst.get() as u64,
            src: src.get() as u64,
            len: len as u64,
            mode: MOVE_MODE_DONTWAKE,
            move_: 0,
        };
        stats::count(Counter::HostUffd);
        // SAFETY: as in `copy`; what becomes of `src` is the caller's promise.
        match unsafe { ioctls::move_pages(self.inner.as_raw_fd(), &mut arg) } {
            Ok(_) => Ok(()),
            Err(errno) => Err(UffdError::from_ioctl(errno, arg.move_)),
        }
    }

    /// UFFDIO_WRITEPROTECT: forbids or permits stores to the present pages of
    /// `range`, waking nobody.
    ///
    /// # Errors
    /// [`UffdError`].
    pub fn write_protect(&self, range: PageRange, protect: bool) -> Result<(), UffdError> {
        // The two flags exclude each other: protecting wakes nobody anyway.
        let mode = if protect { WRITEPROTECT_MODE_WP } else { WRITEPROTECT_MODE_DONTWAKE };
        let mut arg = raw::uffdio_writeprotect { range: uffdio_range(range), mode };
        stats::count(Counter::HostUffd);
        // SAFETY: as in `copy`.
        match unsafe { ioctls::write_protect(self.inner.as_raw_fd(), &mut arg) } {
            Ok(_) => Ok(()),
            Err(errno) => Err(UffdError::from_ioctl(errno, 0)),
        }
    }

    /// UFFDIO_POISON of one missing page: from now on an access fails, one
    /// inside a system call with EFAULT. Wakes the page's waiters.
    ///
    /// # Errors
    /// [`UffdError`]; `Exists` if the page is present.
    pub fn poison(&self, page: VirtAddr) -> Result<(), UffdError> {
        let range = uffdio_range(PageRange::sized(page, PAGE_SIZE));
        let mut arg = raw::uffdio_poison { range, mode: 0, updated: 0 };
        stats::count(Counter::HostUffd);
        // SAFETY: as in `copy`.
        match unsafe { ioctls::poison(self.inner.as_raw_fd(), &mut arg) } {
            Ok(_) => Ok(()),
            Err(errno) => Err(UffdError::from_ioctl(errno, arg.updated)),
        }
    }

    /// UFFDIO_WAKE: lets every thread that waits for a page of `range` repeat
    /// its access.
    ///
    /// # Errors
    /// [`UffdError`].
    pub fn wake(&self, range: PageRange) -> Result<(), UffdError> {
        let mut arg = uffdio_range(range);
        stats::count(Counter::HostUffd);
        // SAFETY: `arg` is what the ioctl reads.
        match unsafe { ioctls::wake(self.inner.as_raw_fd(), &mut arg) } {
            Ok(_) => Ok(()),
            Err(errno) => Err(UffdError::from_ioctl(errno, 0)),
        }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

fn uffdio_range(range: PageRange) -> raw::uffdio_range {
    raw::uffdio_range { start: range.start().get() as u64, len: range.bytes() as u64 }
}

/// What this host allows, for `vmalab doctor`.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// Each way of creating a userfaultfd, tried.
    pub origins: [Attempt; 3],
    /// What the kernel offers ([`feature`]), if any way worked.
    pub features: Option<u64>,
}

impl Capabilities {
    /// Names of the offered features.
    pub fn feature_names(&self) -> impl Iterator<Item = &'static str> {
        let features = self.features.unwrap_or(0);
        feature::NAMES.iter().filter(move |(bit, _)| features & bit != 0).map(|&(_, name)| name)
    }

    /// Whether all bits of `features` are offered.
    pub fn offers(&self, features: u64) -> bool {
        self.features.unwrap_or(0) & features == features
    }

    /// Whether some way works.
    pub fn any_origin(&self) -> bool {
        self.origins.iter().any(|attempt| attempt.result.is_ok())
    }
}

/// Tries every way of creating a userfaultfd and reads the kernel's features.
/// Leaves nothing open.
pub fn capabilities() -> Capabilities {
    let origins = [Origin::Syscall, Origin::Device, Origin::UserModeOnly]
        .map(|origin| Attempt { origin, result: open_origin(origin).map(drop) });
    Capabilities { origins, features: offered_features().ok() }
}
