//! The destination of UCX's log.
#![expect(unsafe_code, reason = "redirects this process's standard output")]

use std::env;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::ptr;

use ucx_sys::{Library, UCS_ERR_NO_DEVICE, UCS_OK};

use crate::config::Config;
use crate::libraries::Installed;
use crate::node::context;

pub(crate) fn log_messages_do_not_go_to_standard_output(installed: &Installed) {
    let [output, error] = complain(installed);
    assert_eq!(output, "");
    assert!(error.contains("no-such-transport"), "{error}");
}

pub(crate) fn log_messages_go_to_the_file_that_the_user_set(installed: &Installed) {
    // SAFETY: L7: this process has one thread.
    unsafe { env::set_var("UCX_LOG_FILE", "stdout") };
    let [output, error] = complain(installed);
    assert!(output.contains("no-such-transport"), "{output}");
    assert_eq!(error, "");
}

pub(crate) fn a_log_opened_by_others_is_left_alone(installed: &Installed) {
    crate::opening::load(&installed.libucp);
    let [output, error] = complain(installed);
    assert!(output.contains("no-such-transport"), "{output}");
    assert_eq!(error, "");
}

/// Requests a transport that does not exist. Returns what UCX writes to standard output and standard error.
fn complain(installed: &Installed) -> [String; 2] {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["output", "error"].map(|name| folder.path().join(name));
    // A failed assertion prints to these descriptors.
    let saved = [1, 2].map(|descriptor| {
        // SAFETY: L1: the descriptor is open in every test.
        unsafe { libc::dup(descriptor) }
    });
    for (descriptor, path) in [1, 2].into_iter().zip(&paths) {
        let file = File::create(path).unwrap();
        // SAFETY: M7: no reactor polls the descriptor.
        assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), descriptor) }, descriptor);
    }
    let ucx = Library::open_at(&installed.libucp).unwrap();
    // The parent process set the level `fatal`.
    let is_set = Config::new(ucx).set(c"LOG_LEVEL", c"warn");
    let refused = context(ucx, &[(c"TLS", c"no-such-transport")]);
    // SAFETY: L1: a null pointer flushes every open stream.
    unsafe { libc::fflush(ptr::null_mut()) };
    for (descriptor, saved) in [1, 2].into_iter().zip(saved) {
        // SAFETY: M7: as above.
        unsafe { libc::dup2(saved, descriptor) };
    }
    assert_eq!(is_set, UCS_OK);
    assert_eq!(refused.unwrap_err(), UCS_ERR_NO_DEVICE);
    paths.map(|path| fs::read_to_string(path).unwrap())
}
