//! The bindings to UCX and the ucx backend, with an old and a new UCX. Each claim runs in a process of its own,
//! since a process opens only one UCX.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod child;
mod config;
mod fork;
mod hostile;
mod hostile_peer;
mod hosts;
mod killed;
mod layout;
mod log_output;
mod messages;
mod node;
mod opening;
mod pairs;
mod refusals;
mod settings;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};
use towline_tests::{echoing, libraries, need, over_ucx, polls, wire};

use child::{Check, Claim};

/// The claims about each UCX.
const OF_EACH: &[(&str, Check)] = &[
    ("opens_by_its_path_once", opening::opens_by_its_path_once),
    ("opens_whatever_name_it_was_loaded_by", opening::opens_whatever_name_it_was_loaded_by),
    (
        "a_loaded_libucs_is_completed_by_its_own_libucp",
        opening::a_loaded_libucs_is_completed_by_its_own_libucp,
    ),
    ("a_second_copy_is_refused", opening::a_second_copy_is_refused),
    ("two_copies_that_others_loaded_are_refused", opening::two_copies_that_others_loaded_are_refused),
    ("handlers_of_signals_stay_as_they_were", opening::handlers_of_signals_stay_as_they_were),
    ("handlers_stay_without_the_debug_signal", opening::handlers_stay_without_the_debug_signal),
    ("an_eager_message_to_oneself_arrives", messages::an_eager_message_to_oneself_arrives),
    ("a_rendezvous_with_oneself_arrives", messages::a_rendezvous_with_oneself_arrives),
    ("a_setting_is_known_if_it_can_be_set", settings::a_setting_is_known_if_it_can_be_set),
    ("a_setting_of_a_transport_has_its_effect", settings::a_setting_of_a_transport_has_its_effect),
    ("transports_are_reported_with_their_devices", settings::transports_are_reported_with_their_devices),
    ("log_messages_do_not_go_to_standard_output", log_output::log_messages_do_not_go_to_standard_output),
    (
        "log_messages_go_to_the_file_that_the_user_set",
        log_output::log_messages_go_to_the_file_that_the_user_set,
    ),
    ("a_log_opened_by_others_is_left_alone", log_output::a_log_opened_by_others_is_left_alone),
    ("the_same_version_in_another_process_is_a_peer", pairs::the_same_version_in_another_process_is_a_peer),
    ("another_version_is_refused_with_the_reason", pairs::another_version_is_refused_with_the_reason),
    ("a_setting_that_ucx_lacks_is_named", refusals::a_setting_that_ucx_lacks_is_named),
    (
        "a_setting_that_ucx_takes_from_the_environment_alone_is_refused",
        refusals::a_setting_that_ucx_takes_from_the_environment_alone_is_refused,
    ),
    ("a_value_that_ucx_refuses_is_named", refusals::a_value_that_ucx_refuses_is_named),
    (
        "ends_without_a_common_transport_are_refused_with_the_reason",
        refusals::ends_without_a_common_transport_are_refused_with_the_reason,
    ),
    ("a_connection_reports_its_transport", refusals::a_connection_reports_its_transport),
    ("an_endpoint_with_a_second_copy_is_refused", refusals::an_endpoint_with_a_second_copy_is_refused),
    ("a_violation_ends_its_own_connection_at_most", hostile::a_violation_ends_its_own_connection_at_most),
    (
        "a_violation_before_the_path_is_open_is_refused",
        hostile::a_violation_before_the_path_is_open_is_refused,
    ),
    (
        "measurements_beyond_their_bounds_end_only_their_own_connection",
        hostile::measurements_beyond_their_bounds_end_only_their_own_connection,
    ),
    ("within_a_host_ucx_is_neither_probed_nor_loaded", hosts::within_a_host_ucx_is_neither_probed_nor_loaded),
    (
        "a_peer_killed_while_it_connects_ends_only_its_connection",
        killed::a_peer_killed_while_it_connects_ends_only_its_connection,
    ),
    ("what_may_abort_over_tcp_is_refused", killed::what_may_abort_over_tcp_is_refused),
    ("shared_memory_has_no_names_unless_asked_for", killed::shared_memory_has_no_names_unless_asked_for),
    ("a_limit_on_file_size_ends_no_process", killed::a_limit_on_file_size_ends_no_process),
    (
        "a_fork_of_a_process_with_ucx_is_refused_with_the_reason",
        fork::a_fork_of_a_process_with_ucx_is_refused_with_the_reason,
    ),
];

/// The claims about files other than UCX.
const OF_NONE: [(&str, fn()); 4] = [
    ("a_missing_file_is_unavailable_with_its_path_and_the_remedy", opening::a_missing_file),
    ("what_is_no_library_is_unavailable_in_the_words_of_the_loader", opening::no_library),
    ("a_missing_function_is_named_with_the_file_and_its_version", opening::a_missing_function),
    ("a_version_that_is_too_old_is_named", opening::an_old_version),
];

fn main() -> ExitCode {
    if let Some(outcome) = hosts::run_if_asked() {
        return outcome;
    }
    if let Some(outcome) = killed::connect_if_asked() {
        return outcome;
    }
    if let Some(outcome) = echoing::serve_if_asked() {
        return outcome;
    }
    let of_each = OF_EACH.iter().map(|(name, check)| (*name, Claim::OfEach(*check)));
    let of_none = OF_NONE.into_iter().map(|(name, check)| (name, Claim::OfNone(check)));
    if let Some(outcome) = child::run_if_asked(of_each.chain(of_none)) {
        return outcome;
    }
    let mut trials: Vec<_> =
        OF_NONE.into_iter().map(|(name, _)| Trial::test(name, move || child::hold(name, ""))).collect();
    for (which, find) in libraries::BOTH {
        for &(name, _) in OF_EACH {
            trials.push(Trial::ignorable_test(format!("{which}::{name}"), move || match find() {
                Ok(_) => child::hold(name, which).map(|()| Completion::Completed),
                Err(reason) => need::skip("ucx", &reason),
            }));
        }
        for (number, (name, case)) in hosts::CASES.into_iter().enumerate() {
            if !case.is_of(which) {
                continue;
            }
            let hold = move || match find() {
                Ok(installed) => hosts::holds(number, case, &installed),
                Err(reason) => need::skip("ucx", &reason),
            };
            trials.push(Trial::ignorable_test(format!("{which}::{name}"), hold));
        }
        let layout = format!("{which}::its_headers_have_the_layout_that_is_bound");
        trials.push(Trial::ignorable_test(layout, move || match find() {
            Ok(installed) => layout::headers_have_the_layout_that_is_bound(&installed),
            Err(reason) => need::skip("ucx", &reason),
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
