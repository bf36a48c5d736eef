//! Gets and puts of one end in regions of the other. Some are dropped before they end. The test then checks the
//! owner's memory.

use std::time::Duration;

use towline::{Buffer, BufferMut, Connection, ErrorKind};

use crate::rng::Rng;
use crate::run::{Run, poll_then_drop};

const LEN: usize = 4096;

pub(crate) async fn access(run: Run, user: Connection, owner: Connection, mut rng: Rng) {
    let content: Vec<u8> = (0..LEN).map(|at| at as u8).collect();
    let readable = owner.expose(content.clone().into(), Duration::MAX).expect("mem is one-sided");
    let writable = owner.expose_mut(BufferMut::zeroed(LEN), Duration::MAX).expect("mem is one-sided");
    // The expected bytes; `None` after a put that was dropped or failed, which may have been written.
    let mut known = vec![Some(0); LEN];
    for turn in 0..rng.below(8) {
        if rng.one_in(3) {
            run.pause(&mut rng, 10).await;
        }
        let len = rng.choose(&[0, 1, 500, LEN]);
        let outside = rng.one_in(6);
        let at = if outside { LEN - len + 1 } else { rng.below(LEN - len + 1) };
        let polls = if rng.one_in(4) { 1 } else { usize::MAX };
        let kind = if rng.one_in(2) {
            let into = BufferMut::with_capacity(len);
            let region = readable.remote();
            match poll_or_drop(user.get(&region, at as u64, into), polls).await {
                None => continue,
                Some(Ok(got)) => {
                    assert!(
                        got.as_slice().expect("host memory") == &content[at..at + len],
                        "the bytes that were read"
                    );
                    continue;
                }
                Some(Err(failed)) => {
                    assert_eq!((failed.returned.len(), failed.returned.capacity()), (0, len));
                    failed.error.kind()
                }
            }
        } else {
            let byte = turn as u8 + 1;
            let region = writable.remote();
            let put = poll_or_drop(user.put(&region, at as u64, Buffer::from(vec![byte; len])), polls).await;
            let is = matches!(put, Some(Ok(()))).then_some(byte);
            if !outside {
                known[at..at + len].fill(is);
            }
            match put {
                None | Some(Ok(())) => continue,
                Some(Err(failed)) => {
                    assert!(failed.returned.as_slice().expect("host memory") == vec![byte; len]);
                    failed.error.kind()
                }
            }
        };
        if outside && kind == ErrorKind::Rejected {
            continue;
        }
        run.may_fail("an access", kind);
        break;
    }
    let key = readable.remote();
    assert!(readable.revoke().await.as_slice().expect("host memory") == content);
    let late = user.get(&key, 0, BufferMut::with_capacity(1)).await.expect_err("the region was revoked");
    if late.error.kind() != ErrorKind::Rejected {
        run.may_fail("an access after the revocation", late.error.kind());
    }
    let written = writable.revoke().await;
    let written = written.as_slice().expect("host memory");
    let same = |(is, known): (&u8, &Option<u8>)| known.is_none_or(|known| known == *is);
    assert!(written.iter().zip(&known).all(same), "the region lacks bytes that were written");
}

async fn poll_or_drop<T>(access: impl Future<Output = T>, polls: usize) -> Option<T> {
    if polls == usize::MAX { Some(access.await) } else { poll_then_drop(access, polls).await }
}
