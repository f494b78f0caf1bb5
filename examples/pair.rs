use vmalab::{
    addr::PAGE_SIZE,
    lock::TypeSafe,
    mm::{MapFlags, Mm, Prot},
    mmu::soft::SoftMmu,
    pager::ZeroPager,
};
fn main() {
    let n: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    vmalab::thread::announce();
    let mm: Mm<TypeSafe, _, _> = Mm::new(SoftMmu::new(1 << 30).unwrap(), ZeroPager);
    for i in 0..1000 {
        mm.mmap(
            mm.range().start().get() + 2 * i * PAGE_SIZE,
            PAGE_SIZE,
            Prot::READ,
            MapFlags::PRIVATE | MapFlags::ANONYMOUS,
        )
        .unwrap();
    }
    for _ in 0..n {
        let a = mm.mmap(0, 128 << 20, Prot::READ | Prot::WRITE, MapFlags::PRIVATE | MapFlags::ANONYMOUS).unwrap();
        mm.munmap(a.get(), 128 << 20).unwrap();
    }
}
