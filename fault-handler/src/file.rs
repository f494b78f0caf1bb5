//! [`FdStore`]: a file's bytes, in a file of the host.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use vmalab::file::Store;

/// A [`Store`] over a descriptor: a regular file or a memfd. The descriptor
/// must permit what is asked: reading always, writing for shared mappings that
/// are stored to.
#[derive(Debug)]
pub struct FdStore(OwnedFd);

/// Calls `f` and leaves errno as it was, for those whom a fault interrupted.
fn keeping_errno<R>(f: impl FnOnce() -> R) -> R {
    let errno = Errno::last_raw();
    let result = f();
    Errno::set_raw(errno);
    result
}

/// Repeats `step`, which does bytes from `done` on and says how many, until
/// `len` are done or it does none.
fn to_the_end(len: usize, mut step: impl FnMut(usize) -> isize) -> Result<usize, Errno> {
    let mut done = 0;
    while done < len {
        match Errno::result(step(done)) {
            Ok(0) => break,
            Ok(bytes) => done += bytes as usize,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

impl FdStore {
    /// A store over `fd`.
    pub fn new(fd: OwnedFd) -> FdStore {
        FdStore(fd)
    }

    /// Memory of the host (`memfd_create`), of `bytes` zeros.
    ///
    /// # Errors
    /// The host's.
    pub fn memory(bytes: u64) -> Result<FdStore, Errno> {
        // SAFETY: a string constant and a flag.
        let fd = Errno::result(unsafe { libc::memfd_create(c"vmalab".as_ptr(), libc::MFD_CLOEXEC) })?;
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let len = libc::off_t::try_from(bytes).map_err(|_| Errno::EFBIG)?;
        // SAFETY: our own descriptor.
        Errno::result(unsafe { libc::ftruncate(fd.as_raw_fd(), len) })?;
        Ok(FdStore(fd))
    }
}

impl AsFd for FdStore {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Store for FdStore {
    fn bytes(&self) -> u64 {
        keeping_errno(|| {
            // SAFETY: all zero bytes are a value of this structure of integers.
            let mut stat: libc::stat = unsafe { std::mem::zeroed() };
            // SAFETY: fills `stat`. It cannot fail on a descriptor that is open.
            let result = unsafe { libc::fstat(self.0.as_raw_fd(), &mut stat) };
            if result == 0 { stat.st_size as u64 } else { 0 }
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let read = keeping_errno(|| {
            to_the_end(buf.len(), |done| {
                let rest = &mut buf[done..];
                let at = (offset + done as u64) as libc::off_t;
                // SAFETY: fills at most `rest`.
                unsafe { libc::pread(self.0.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), at) }
            })
        })?;
        buf[read..].fill(0);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let within = self.bytes().saturating_sub(offset).min(bytes.len() as u64) as usize;
        keeping_errno(|| {
            to_the_end(within, |done| {
                let rest = &bytes[done..within];
                let at = (offset + done as u64) as libc::off_t;
                // SAFETY: reads `rest`.
                unsafe { libc::pwrite(self.0.as_raw_fd(), rest.as_ptr().cast(), rest.len(), at) }
            })
        })?;
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let (Ok(offset), Ok(len)) = (libc::off_t::try_from(offset), libc::off_t::try_from(len)) else {
            return Err(Errno::EINVAL);
        };
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: takes no pointers.
        Errno::result(unsafe { libc::fallocate(self.0.as_raw_fd(), mode, offset, len) }).map(drop)
    }

    fn sync(&self) -> Result<(), Errno> {
        // SAFETY: takes no pointers.
        Errno::result(unsafe { libc::fdatasync(self.0.as_raw_fd()) }).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_never_grows() {
        let store = FdStore::memory(5000).unwrap();
        store.write_at(4990, &[7; 100]).unwrap();
        store.write_at(6000, &[7; 100]).unwrap();
        assert_eq!(store.bytes(), 5000);
        let mut buf = [1; 20];
        store.read_at(4985, &mut buf).unwrap();
        assert_eq!((&buf[..5], &buf[5..15], &buf[15..]), (&[0; 5][..], &[7; 10][..], &[0; 5][..]));
        store.punch(4992, 8).unwrap();
        store.read_at(4990, &mut buf[..4]).unwrap();
        assert_eq!(buf[..4], [7, 7, 0, 0]);
        store.sync().unwrap();
    }

    #[test]
    fn errno_stays_what_it_was() {
        let store = FdStore::new(std::fs::File::open("/").unwrap().into());
        Errno::set_raw(77);
        assert_eq!(store.read_at(0, &mut [0; 8]), Err(Errno::EISDIR));
        store.bytes();
        assert_eq!(Errno::last_raw(), 77);
    }
}
