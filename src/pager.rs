//! Pagers: where the contents of a page come from (`vm_ops->fault`).

use crate::addr::VirtAddr;
use crate::mmu::{Content, PageBuf};

/// The fault a [`Pager`] is asked to fill a page for.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// Start of the page.
    pub page: VirtAddr,
    /// Incarnation of the VMA under whose lock the page is filled
    /// ([`Vma`](crate::vma::Vma)).
    pub incarnation: u64,
    /// The address space, by its process-wide number.
    pub mm_id: u64,
}

/// Fills pages. Called on the fault path: must be async-signal-safe, so no
/// allocation, no lock, no logging.
pub trait Pager: Send + Sync + 'static {
    /// The contents of the page; `scratch` may be used to build them. It
    /// arrives zeroed.
    fn page<'b>(&self, request: &PageRequest, scratch: &'b mut PageBuf) -> Content<'b>;

    /// Whether `page` never uses its scratch buffer.
    fn is_zero(&self) -> bool {
        false
    }
}

/// Anonymous memory: every page is zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct ZeroPager;

impl Pager for ZeroPager {
    fn page<'b>(&self, _: &PageRequest, _: &'b mut PageBuf) -> Content<'b> {
        Content::Zero
    }

    fn is_zero(&self) -> bool {
        true
    }
}

/// The first words of a page filled by [`StampedPager`]; the rest is zero.
///
/// Oracle O1 of the kernel lineage: a page says which VMA incarnation of
/// which address space it was filled for, and at which address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// [`PageRequest::incarnation`], never 0.
    pub incarnation: u64,
    /// [`PageRequest::page`] xor [`Stamp::SALT`].
    pub page: u64,
    /// [`PageRequest::mm_id`], never 0.
    pub mm_id: u64,
}

impl Stamp {
    /// Keeps a stamp from looking like a plain pointer or a small number.
    pub const SALT: u64 = 0x5eed_0000_0000_0a5a;

    /// The stamp for a request.
    pub const fn of(request: &PageRequest) -> Stamp {
        Stamp { incarnation: request.incarnation, page: request.page.0 as u64 ^ Stamp::SALT, mm_id: request.mm_id }
    }

    /// The page address the stamp was made for.
    pub const fn page_addr(&self) -> VirtAddr {
        VirtAddr((self.page ^ Stamp::SALT) as usize)
    }

    /// Reads a stamp from the first bytes of a page.
    pub fn from_bytes(bytes: &[u8; 24]) -> Stamp {
        let word = |i: usize| u64::from_ne_bytes(bytes[i * 8..i * 8 + 8].try_into().expect("eight bytes"));
        Stamp { incarnation: word(0), page: word(1), mm_id: word(2) }
    }

    /// The bytes that [`from_bytes`](Stamp::from_bytes) reads.
    pub fn to_bytes(&self) -> [u8; 24] {
        let mut out = [0; 24];
        out[0..8].copy_from_slice(&self.incarnation.to_ne_bytes());
        out[8..16].copy_from_slice(&self.page.to_ne_bytes());
        out[16..24].copy_from_slice(&self.mm_id.to_ne_bytes());
        out
    }
}

/// For verification: each page starts with its [`Stamp`].
#[derive(Clone, Copy, Debug, Default)]
pub struct StampedPager;

impl Pager for StampedPager {
    fn page<'b>(&self, request: &PageRequest, scratch: &'b mut PageBuf) -> Content<'b> {
        scratch.0[..24].copy_from_slice(&Stamp::of(request).to_bytes());
        Content::Page(scratch)
    }
}

/// A pager chosen when the program runs.
#[derive(Clone, Copy, Debug)]
pub enum AnyPager {
    /// [`ZeroPager`].
    Zero,
    /// [`StampedPager`].
    Stamped,
}

impl Pager for AnyPager {
    fn page<'b>(&self, request: &PageRequest, scratch: &'b mut PageBuf) -> Content<'b> {
        match self {
            AnyPager::Zero => ZeroPager.page(request, scratch),
            AnyPager::Stamped => StampedPager.page(request, scratch),
        }
    }

    fn is_zero(&self) -> bool {
        matches!(self, AnyPager::Zero)
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn stamp_survives_the_page() {
        let request = PageRequest { page: VirtAddr(0x7000), incarnation: 9, mm_id: 3 };
        let mut buf = PageBuf::zeroed();
        let Content::Page(page) = StampedPager.page(&request, &mut buf) else { panic!("stamped pages are not zero") };
        let stamp = Stamp::from_bytes(page.0[..24].try_into().unwrap());
        assert_eq!(stamp, Stamp::of(&request));
        assert_eq!(stamp.page_addr(), VirtAddr(0x7000));
        assert!(page.0[24..].iter().all(|&b| b == 0));
    }
}
