//! `cargo xtask bindings`: the bindings to C libraries in `ffi/`. bindgen makes them from the headers, and
//! they are committed: only this command needs headers and libclang, a build does not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::install;
use crate::process::{Outcome, cargo, root, run as run_command, target_directory};
use crate::stages::BINDINGS;

/// The name in `TOWLINE_REQUIRE` of the programs that make bindings.
const NEED: &str = "bindings";
/// Another version writes the same bindings differently.
const BINDGEN: &str = "0.73.2";
/// The options for any header. Enums become integers, since a later library may return a value that this
/// header lacks. Functions become a table that is filled at run time. The compiler checks the layout of each
/// struct.
const STYLE: [&str; 13] = [
    "--use-core",
    "--no-doc-comments",
    "--default-enum-style=consts",
    "--no-prepend-enum-name",
    "--with-derive-default",
    "--dynamic-loading=Functions",
    "--dynamic-link-require-all",
    "--wrap-unsafe-ops",
    "--rust-target=1.95",
    "--rust-edition=2024",
    "--formatter=none",
    "--disable-header-comment",
    "--blocklist-type=FILE|_IO_.*|__off(64)?_t|sockaddr|sockaddr_storage|(__)?socklen_t|sa_family_t",
];

/// A library with committed bindings.
#[derive(Clone, Copy, Debug)]
struct Library {
    name: &'static str,
    /// Path of the header within the include folder.
    header: &'static str,
    /// The version of the headers, and the header and line that define it.
    version: (&'static str, &'static str, &'static str),
    functions: &'static [&'static str],
    /// Enums whose constants are needed. The types that functions use are included anyway.
    types: &'static [&'static str],
    constants: &'static [&'static str],
}

const UCX: Library = Library {
    name: "ucx",
    header: "ucp/api/ucp.h",
    version: ("1.13", "ucp/api/ucp_version.h", "#define UCP_API_MINOR    13"),
    functions: &[
        "ucp_am_data_release",
        "ucp_am_recv_data_nbx",
        "ucp_am_send_nbx",
        "ucp_cleanup",
        "ucp_config_modify",
        "ucp_config_print",
        "ucp_config_read",
        "ucp_config_release",
        "ucp_conn_request_query",
        "ucp_context_print_info",
        "ucp_context_query",
        "ucp_ep_close_nbx",
        "ucp_ep_create",
        "ucp_ep_flush_nbx",
        "ucp_ep_print_info",
        "ucp_ep_query",
        "ucp_ep_rkey_unpack",
        "ucp_get_nbx",
        "ucp_get_version",
        "ucp_get_version_string",
        "ucp_init_version",
        "ucp_listener_create",
        "ucp_listener_destroy",
        "ucp_listener_query",
        "ucp_listener_reject",
        "ucp_mem_map",
        "ucp_mem_unmap",
        "ucp_put_nbx",
        "ucp_request_cancel",
        "ucp_request_free",
        "ucp_rkey_buffer_release",
        "ucp_rkey_destroy",
        "ucp_rkey_pack",
        "ucp_worker_arm",
        "ucp_worker_create",
        "ucp_worker_destroy",
        "ucp_worker_get_efd",
        "ucp_worker_progress",
        "ucp_worker_query",
        "ucp_worker_release_address",
        "ucp_worker_set_am_recv_handler",
        "ucp_worker_signal",
        "ucs_status_string",
    ],
    types: &[
        "ucp_am_cb_flags",
        "ucp_am_handler_param_field",
        "ucp_am_recv_attr_t",
        "ucp_conn_request_attr_field",
        "ucp_context_attr_field",
        "ucp_dt_iov_t",
        "ucp_dt_type",
        "ucp_ep_attr_field",
        "ucp_ep_close_flags_t",
        "ucp_ep_params_field",
        "ucp_ep_params_flags_field",
        "ucp_feature",
        "ucp_listener_attr_field",
        "ucp_listener_params_field",
        "ucp_mem_map_params_field",
        "ucp_op_attr_t",
        "ucp_params_field",
        "ucp_send_am_flags",
        "ucp_worker_attr_field",
        "ucp_worker_params_field",
    ],
    constants: &["UCP_API_MAJOR", "UCP_API_MINOR"],
};

const LIBRARIES: [Library; 1] = [UCX];

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Library to make bindings of
    #[arg(value_parser = LIBRARIES.map(|library| library.name))]
    library: String,
    /// Write nothing; fail if the committed bindings differ from those made here
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let deadline = BINDINGS.deadline();
    let library = LIBRARIES.iter().find(|library| library.name == arguments.library);
    let library = library.ok_or("no library has this name")?;
    if arguments.check { check(library, deadline) } else { make(library, &committed(library), deadline) }
}

/// Runs the stage of `ci`: compares the bindings, if this machine can make them.
pub(crate) fn stage(deadline: Instant) -> Outcome {
    match install::lack_of(NEED) {
        Some(lack) if install::is_required(NEED) => Err(lack),
        Some(lack) => {
            eprintln!("bindings are not compared: {lack}");
            Ok(())
        }
        None => LIBRARIES.iter().try_for_each(|library| check(library, deadline)),
    }
}

fn check(library: &Library, deadline: Instant) -> Outcome {
    let committed = committed(library);
    let made = target_directory().join("bindings.rs");
    make(library, &made, deadline)?;
    if read(&made)? == read(&committed)? {
        return Ok(());
    }
    let name = library.name;
    Err(format!(
        "{} is not what `cargo xtask bindings {name}` makes: see {}",
        committed.display(),
        made.display()
    ))
}

fn committed(library: &Library) -> PathBuf {
    root().join("ffi").join(format!("{}-sys/src/bindings.rs", library.name))
}

fn make(library: &Library, output: &Path, deadline: Instant) -> Outcome {
    let bindgen = bindgen(deadline)?;
    let headers = headers(library)?;
    let Library { name, version: (version, ..), functions, .. } = library;
    let names: Vec<_> = functions.iter().map(|name| format!("c{name:?}")).collect();
    let mut command = Command::new(bindgen);
    command.args(STYLE).arg("--output").arg(output).arg(headers.join(library.header));
    for line in [
        &format!(
            "// Made by `cargo xtask bindings {name}` from the headers of version {version}: edit the list there."
        ),
        "use libc::{FILE, sockaddr, sockaddr_storage, socklen_t};",
        "/// Every function of the table.",
        &format!("pub const FUNCTIONS: [&::core::ffi::CStr; {}] = [{}];", names.len(), names.join(", ")),
    ] {
        command.args(["--raw-line", line]);
    }
    for (option, names) in [
        ("--allowlist-function", library.functions),
        ("--allowlist-type", library.types),
        ("--allowlist-var", library.constants),
    ] {
        command.args([option, &names.join("|")]);
    }
    // `stddef.h` and similar headers belong to the compiler; libclang has none.
    command.arg("--").arg("-isystem").arg(compiler_headers()?).arg("-I").arg(headers);
    run_command(&mut command, deadline)?;
    let mut format = Command::new("rustfmt");
    format.args(["--edition=2024", "--config-path"]).arg(root()).arg(output);
    run_command(&mut format, deadline)
}

/// Returns the folder of the library's headers, if their version is that of the bindings.
fn headers(library: &Library) -> Result<PathBuf, String> {
    let folder = PathBuf::from("/usr/include");
    let (version, file, line) = library.version;
    let file = folder.join(file);
    if read(&file)?.lines().any(|found| found == line) {
        Ok(folder)
    } else {
        Err(format!("{}: these are not the headers of version {version}", file.display()))
    }
}

fn compiler_headers() -> Result<PathBuf, String> {
    let output = Command::new("cc")
        .arg("-print-file-name=include")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cc: {error}"))?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Returns the path of bindgen, and builds it first if necessary.
fn bindgen(deadline: Instant) -> Result<PathBuf, String> {
    let folder = target_directory().join(format!("bindgen-{BINDGEN}"));
    let program = folder.join("bin/bindgen");
    if !program.is_file() {
        let version = format!("={BINDGEN}");
        // Unoptimised: it runs for a second, and an optimised build would take longer.
        let mut command = cargo(&["install", "bindgen-cli", "--locked", "--debug", "--version", &version]);
        run_command(command.arg("--root").arg(&folder), deadline)?;
    }
    Ok(program)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}
