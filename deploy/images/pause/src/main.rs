//! `pause`: the first process of a pod's sandbox. It holds the pod's namespaces open, collects
//! orphans where the pod shares its process namespace, and ends on SIGINT or SIGTERM.

#![allow(
    unsafe_code,
    reason = "four system calls; a static program of a few hundred KiB has no room for wrappers"
)]

extern "C" fn end(_signal: libc::c_int) {
    // SAFETY: `_exit` may be called from a signal handler.
    unsafe { libc::_exit(0) }
}

extern "C" fn reap(_signal: libc::c_int) {
    // SAFETY: `waitpid` may be called from a signal handler; a null status is allowed.
    unsafe { while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {} }
}

fn main() {
    // SAFETY: both handlers only make calls that are safe in a signal handler.
    unsafe {
        libc::signal(libc::SIGINT, end as extern "C" fn(libc::c_int) as libc::sighandler_t);
        libc::signal(libc::SIGTERM, end as extern "C" fn(libc::c_int) as libc::sighandler_t);
        libc::signal(libc::SIGCHLD, reap as extern "C" fn(libc::c_int) as libc::sighandler_t);
        loop {
            libc::pause();
        }
    }
}
