//! The patterns of the task runtime, in their smallest form.

use crate::bench::{bench, ceilings, rows};

#[test]
fn one_task_is_compared_with_its_wakeups() {
    let rows = rows(&bench("--transport mem,tcp --pattern tasks --window 1 --wait spin,sleep --json"));
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert_eq!(
            (&row["size_bytes"], &row["processes"], &row["workers"]),
            (&0.into(), &1.into(), &1.into())
        );
        assert_eq!((row["path"].clone(), ceilings(&row)), (row["transport"].clone(), vec!["wakeups"]));
        assert!(row["p50_us"].as_f64().unwrap() > 0.0 && row["tasks_per_s"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["ceilings"][0]["share"].as_f64().unwrap() > 0.0, "{row}");
    }
}

#[test]
fn many_tasks_and_workers_report_the_schedulers_cpu_time() {
    let line = "--transport mem --pattern tasks --window 2000 --workers 20 --json";
    let rows = rows(&bench(&format!("{line} --assert mem.tasks.0[window=2000].tasks_per_s>0")));
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((&row["window"], &row["workers"]), (&2000.into(), &20.into()));
    assert!(row["scheduler_us_per_task"].as_f64().unwrap() > 0.0, "{row}");
    assert!(row["gb_per_s"].is_null() && row["messages_per_s"].is_null(), "{row}");
}

#[test]
fn a_shuffle_counts_bytes_between_workers_beside_memcpy() {
    let rows = rows(&bench("--transport mem,tcp --pattern shuffle --size 4M --window 4 --json"));
    for (row, processes) in rows.iter().zip([1, 2]) {
        assert_eq!((&row["processes"], ceilings(row)), (&processes.into(), vec!["memcpy"]), "{row}");
        assert!(row["gb_per_s"].as_f64().unwrap() > 0.0, "both workers have some of it: {row}");
        assert!(row["note"].as_str().unwrap().contains("of the bytes moved between the workers"), "{row}");
    }
    assert_eq!(rows.len(), 2);
}

#[test]
fn options_that_do_not_apply_to_tasks_are_refused() {
    for (line, says) in [
        ("--pattern tasks --size 8", "--size does not apply to the pattern tasks: its tasks are empty"),
        ("--pattern shuffle --size 255", "16 blocks of 16 parts are more than 255"),
        ("--pattern tasks,incast --workers 200", "at most 64 with the pattern incast"),
        ("--pattern bandwidth --window 70000", "at most 65536 with the pattern bandwidth"),
        ("--pattern tasks --rate 5", "--rate does not apply to the pattern tasks"),
    ] {
        bench(&format!("--transport mem {line}")).is_wrong_usage(says);
    }
    bench("--pattern shuffle --connect tcp://127.0.0.1:1").is_wrong_usage("its workers are started here");
}
