//! Peers that join and leave in good order, and peers that leave data behind.

use std::time::Duration;

use rustix::process::Signal;
use towline_runtime::ErrorKind;

use crate::cluster::{Case, Cluster, run};
use crate::functions::SLEEP;
use crate::peer::{KEPT_BLOCKS, KEPT_LEN, Peer};

pub(crate) const CASES: &[Case] = &[
    ("workers_join_and_leave_at_any_time", workers_come_and_go),
    ("a_killed_client_releases_its_data", client_killed),
    ("closing_scheduler_closes_its_connections", scheduler_closes),
];

fn workers_come_and_go() {
    run(async {
        let mut cluster = Cluster::start(0, 1).await;
        // Before any worker has joined.
        let tasks = cluster.client.map(SLEEP, (0..120).map(|n| (n % 7,))).unwrap();
        cluster.join(1).await;
        for _ in 0..4 {
            cluster.join(2).await;
            tokio::time::sleep(Duration::from_millis(15)).await;
            cluster.workers.remove(0).leave().await;
        }
        let expected: Vec<_> = (0..120).map(|n| n % 7).collect();
        assert_eq!(cluster.client.gather(&tasks).await.unwrap(), expected);
        let stats = cluster.eventually("they left", |stats| stats.workers.len() == 1).await;
        assert_eq!(stats.workers_lost, 0, "none of them died");
    });
}

fn client_killed() {
    run(async {
        let cluster = Cluster::start(2, 2).await;
        let mut client = Peer::start("client", &cluster.address, 0);
        assert_eq!(client.line().await, "made");
        let kept =
            |stats: &towline_runtime::Stats| stats.workers.iter().map(|it| it.memory_bytes).sum::<u64>();
        let stats = cluster.client.stats().await.unwrap();
        assert!(kept(&stats) >= (KEPT_BLOCKS * KEPT_LEN) as u64, "{stats:#?}");
        client.signal(Signal::KILL);
        let stats = cluster.eventually("its data is released", |stats| kept(stats) == 0).await;
        assert_eq!((stats.clients, stats.tasks), (1, Default::default()), "{stats:#?}");
    });
}

fn scheduler_closes() {
    run(async {
        let cluster = Cluster::start(1, 1).await;
        let Cluster { scheduler, mut workers, client, .. } = cluster;
        let endless = client.submit(SLEEP, (3_600_000,)).unwrap();
        let error = async { endless.result().await.unwrap_err() };
        let ((), error) = tokio::join!(scheduler.leave(), error);
        assert_eq!(error.kind(), ErrorKind::SchedulerLost, "{error}");
        assert!(error.to_string().contains("closed"), "the scheduler closed the connection: {error}");
        assert_eq!(workers[0].line().await, "SchedulerLost");
    });
}
