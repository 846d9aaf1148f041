//! How this process gives memory back.

/// Keeps the allocator from growing used to large buffers.
///
/// A stream's buffers have a megabyte. The GNU allocator takes the first ones from the kernel and gives them back, but each
/// that is freed raises the size from which on it does so, and soon it keeps such buffers in its heaps: an agent holds
/// megabytes for streams that are long gone, and has to clear those that it uses again. With a limit that was set it stays
/// at that limit, which is the one that it begins with. Nothing of this size is allocated while data flows.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the allocator has no other way to be told")]
pub(super) fn give_back_large_buffers() {
    use std::ffi::c_int;
    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
    }
    const MMAP_THRESHOLD: c_int = -3;
    const LARGE: c_int = 128 << 10;
    // SAFETY: the signature is that of the GNU C library, which may be called at any time; a value that it does not like it
    // refuses, and then everything stays as it was.
    unsafe { mallopt(MMAP_THRESHOLD, LARGE) };
}

/// Other allocators are left as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) const fn give_back_large_buffers() {}
