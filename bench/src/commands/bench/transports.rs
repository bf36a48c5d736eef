//! The transports of a run: those of the options, or every ready one. A transport that does not work here is
//! refused with the reason.

use towline::backend::Ucx;
use towline::{Address, BackendReport, BackendState, Caps, Endpoint, ErrorKind, Scheme};

use super::options::Options;
use crate::case::Transport;
use crate::failure::Failure;

/// Returns the transports of the options, or every ready one.
pub(super) fn transports(options: &Options, backends: &[BackendReport]) -> Result<Vec<Transport>, Failure> {
    if let Some(address) = &options.connect {
        return connected(&options.transport, address);
    }
    if options.transport.is_empty() {
        return Ok(all(backends));
    }
    let mut transports: Vec<Transport> = Vec::new();
    for transport in &options.transport {
        ready(transport.name, backends).map_err(|failure| failure.during("--transport"))?;
        if !transports.contains(transport) {
            transports.push(transport.clone());
        }
    }
    Ok(transports)
}

/// Returns every ready transport, and `auto` first if several connect processes.
fn all(backends: &[BackendReport]) -> Vec<Transport> {
    let ready = |caps: Caps| {
        let ready = move |backend: &&BackendReport| matches!(&backend.state, BackendState::Ready { caps: has, .. } if has.contains(caps));
        backends.iter().filter(ready)
    };
    let auto = (ready(Caps::CROSS_PROCESS).count() > 1).then(Transport::auto);
    auto.into_iter().chain(ready(Caps::empty()).map(|backend| Transport::plain(backend.name))).collect()
}

/// Sets the option `streams` of every transport to the value of `--streams`.
pub(super) fn set_streams(asked: Option<u32>, transports: &mut [Transport]) -> Result<(), Failure> {
    let Some(streams) = asked else { return Ok(()) };
    for transport in transports {
        if !transport.takes_streams() {
            return Err(Failure::usage(format!(
                "--streams does not apply to {}: name transports that have streams, as --transport tcp",
                transport.name
            )));
        }
        if let Some(given) = transport.options.insert("streams".to_owned(), streams.to_string())
            && given != streams.to_string()
        {
            return Err(Failure::usage(format!("--streams {streams} and streams={given}: leave one out")));
        }
    }
    Ok(())
}

/// Refuses a transport that does not work here, with the reason.
pub(crate) fn ready(name: &str, backends: &[BackendReport]) -> Result<(), Failure> {
    if name == Transport::auto().name {
        return Ok(());
    }
    let sentence = match backends.iter().find(|backend| backend.name == name).map(|backend| &backend.state) {
        Some(BackendState::Ready { .. }) => return Ok(()),
        Some(BackendState::Unavailable { reason, remedy }) => {
            format!("{name} is not ready on this machine: {reason}: {remedy}")
        }
        Some(BackendState::Planned) => {
            format!("{name} is planned, and not in this version: `towline info` lists what is ready")
        }
        _ => format!("this version does not know {name}: `towline info` lists what is ready"),
    };
    Err(Failure::usage(sentence))
}

/// Returns the transports of `--connect`: that of the address, which `--transport` may narrow if it is
/// `towline://`.
fn connected(asked: &[Transport], address: &Address) -> Result<Vec<Transport>, Failure> {
    let scheme = address.scheme();
    if scheme == Scheme::Mem {
        return Err(Failure::usage("--connect: mem reaches only its own process: leave --connect out"));
    }
    let there = Transport::to(address);
    if asked.is_empty() {
        return Ok(vec![there]);
    }
    let mut transports = asked.to_vec();
    for transport in &mut transports {
        if transport.name == "mem" {
            return Err(Failure::usage("--transport mem reaches only its own process: leave --connect out"));
        }
        let fits = there.is_auto() || transport.name == there.name;
        if !fits || (transport.is_encrypted() && !there.is_encrypted()) {
            let why = format!(
                "--transport {transport} does not fit --connect {address}: connect to a towline:// address (towlines:// for \
                 tls=on), or leave one out",
            );
            return Err(Failure::usage(why));
        }
        for (key, value) in &there.options {
            if transport.options.get(key).is_some_and(|asked| asked != value) {
                return Err(Failure::usage(format!(
                    "--transport {transport} and --connect {address}: both say {key}: leave one out"
                )));
            }
            transport.options.insert(key.clone(), value.clone());
        }
    }
    Ok(transports)
}

/// Has the library validate the transport's options.
pub(super) async fn try_options(endpoint: &Endpoint, transport: &Transport) -> Result<(), Failure> {
    if transport.query().is_empty() {
        return Ok(());
    }
    let address = transport.local_address();
    let address: Address =
        address.parse().map_err(|error: towline::Error| Failure::usage(error.to_string()))?;
    let tried = async {
        endpoint.listen(&address).await?;
        // A listener reads these settings only when a peer connects.
        if address.settings().next().is_some() { Ucx::default().settings(&address).map(drop) } else { Ok(()) }
    };
    match tried.await {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::Invalid | ErrorKind::Unavailable | ErrorKind::Unsupported
            ) =>
        {
            Err(Failure::usage(format!("--transport {transport}: {error}")))
        }
        outcome => outcome.map_err(Failure::from),
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::tests::memory;
    use super::super::plan::expand;
    use super::super::plan::tests::options;
    use super::*;
    use crate::results::row::Row;

    #[test]
    fn streams_are_an_option_of_the_transport_and_a_key_of_the_row() {
        let rows = |line: &str| -> Result<Vec<Row>, String> {
            let options = options(line);
            let mut transports = options.transport.clone();
            set_streams(options.streams, &mut transports).map_err(|failure| failure.to_string())?;
            let cases =
                expand(&options, &transports, &memory(64 << 30)).map_err(|failure| failure.to_string())?;
            Ok(cases.iter().map(Row::planned).collect())
        };
        let line = "--transport tcp,auto?integrity=crc32c --pattern latency";
        for row in rows(&format!("{line} --streams 4")).unwrap() {
            assert_eq!((row.streams, row.options["streams"].as_str()), (4, "4"));
        }
        assert!(rows(line).unwrap().iter().all(|row| row.streams == 1));
        let same = rows("--transport tcp?streams=4 --streams 4 --pattern latency").unwrap();
        assert_eq!((same.len(), same[0].streams), (1, 4));
        assert!(rows("--transport tcp?streams=2 --streams 4").unwrap_err().contains("leave one out"));
        assert!(rows("--transport tcp,mem --streams 4").unwrap_err().contains("does not apply to mem"));
    }

    #[test]
    fn without_options_it_is_all_that_is_ready_and_auto_where_there_is_a_choice() {
        let ready = |name, caps| BackendReport { name, state: BackendState::Ready { version: None, caps } };
        let names = |backends: &[BackendReport]| -> Vec<&str> {
            all(backends).iter().map(|transport| transport.name).collect()
        };
        let (mem, tcp) =
            (ready("mem", Caps::ANY_PLACE), ready("tcp", Caps::CROSS_PROCESS | Caps::CROSS_HOST));
        let ib = BackendReport { name: "ib", state: BackendState::Planned };
        assert_eq!(names(&[mem.clone(), tcp.clone(), ib.clone()]), ["mem", "tcp"]);
        let shm = ready("shm", Caps::CROSS_PROCESS);
        assert_eq!(names(&[mem, shm, tcp, ib]), ["auto", "mem", "shm", "tcp"]);
    }

    #[test]
    fn what_is_not_ready_is_refused_with_the_reason() {
        let backends = [
            BackendReport { name: "shm", state: BackendState::Planned },
            BackendReport {
                name: "ib",
                state: BackendState::Unavailable { reason: "no device".into(), remedy: "plug one in".into() },
            },
        ];
        let refused = |name| ready(name, &backends).unwrap_err().to_string();
        assert!(refused("shm").contains("planned, and not in this version"));
        assert!(refused("ib").contains("no device: plug one in"));
        assert!(refused("ucx").contains("does not know ucx"));
        ready("auto", &backends).unwrap();
    }

    #[test]
    fn connect_says_the_transport() {
        let towline: Address = "towline://host:1".parse().unwrap();
        let tcp: Address = "tcp://host:1".parse().unwrap();
        let names = |asked: &[&'static str], address| -> Result<Vec<&'static str>, String> {
            let asked: Vec<Transport> = asked.iter().copied().map(Transport::plain).collect();
            let found = connected(&asked, address).map_err(|failure| failure.to_string())?;
            Ok(found.iter().map(|transport| transport.name).collect())
        };
        assert_eq!(names(&[], &towline), Ok(vec!["auto"]));
        assert_eq!(names(&[], &tcp), Ok(vec!["tcp"]));
        assert_eq!(names(&["tcp"], &towline), Ok(vec!["tcp"]));
        let several: Address = "tcp://host:1?streams=4".parse().unwrap();
        let asked = |text: &str| connected(&[text.parse().unwrap()], &several);
        assert_eq!(asked("tcp?integrity=crc32c").unwrap()[0].to_string(), "tcp?integrity=crc32c&streams=4");
        assert_eq!(connected(&[], &several).unwrap()[0].to_string(), "tcp?streams=4");
        assert!(asked("tcp?streams=2").unwrap_err().to_string().contains("both say streams"));
        let towlines: Address = "towlines://host:1".parse().unwrap();
        assert_eq!(names(&["tcp"], &towlines), Ok(vec!["tcp"]));
        let tls = connected(&[], &"tls://host:1".parse().unwrap()).unwrap();
        assert_eq!(tls, ["tcp?tls=on".parse().unwrap()]);
        let plainly = connected(&tls, &tcp).unwrap_err().to_string();
        assert!(plainly.contains("towlines://"), "{plainly}");
        assert!(names(&["ucx"], &tcp).unwrap_err().contains("does not fit"));
        assert!(names(&["mem"], &towline).unwrap_err().contains("its own process"));
        assert!(names(&[], &"mem://x".parse().unwrap()).unwrap_err().contains("its own process"));
    }
}
