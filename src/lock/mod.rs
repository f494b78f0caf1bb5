//! The lock schemes (stub while interfaces settle).
/// How a fault gets a stable VMA.
pub trait LockScheme: Sized + Send + Sync + 'static {
    /// `--lock` name.
    const NAME: &'static str;
}
/// mmap_lock only.
pub struct MmapOnly;
impl LockScheme for MmapOnly {
    const NAME: &'static str = "mmap";
}
/// The seed.
pub struct TypeSafe;
impl LockScheme for TypeSafe {
    const NAME: &'static str = "typesafe";
}
