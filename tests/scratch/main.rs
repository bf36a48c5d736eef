use towline::*;
#[tokio::test]
async fn mem_round_trip() {
    let e = Endpoint::new().unwrap();
    let l = e.listen(&std::env::var("ADDR").unwrap_or("mem://".into()).parse().unwrap()).await.unwrap();
    println!("{}", l.address());
    let (a, b) = tokio::join!(e.connect(l.address()), l.accept());
    let (a, b) = (a.unwrap(), b.unwrap());
    for n in [0usize, 1, 100, 16383, 16384, 100_000, 5_000_000] {
        let m = Message::new("hi").with_frame(vec![7u8; n]).with_frame(vec![3u8; n / 2]);
        let (s, r) = tokio::join!(a.deliver(m), b.recv());
        s.unwrap();
        let r = r.unwrap();
        assert_eq!(r.frames()[0].len(), n);
        assert!(r.frames()[0].as_slice().unwrap().iter().all(|x| *x == 7));
        assert!(r.frames()[1].as_slice().unwrap().iter().all(|x| *x == 3));
    }
    let region = a.expose(Buffer::from(vec![9u8; 100_000]), std::time::Duration::from_secs(5)).unwrap();
    let got = b.get(&region.remote(), 10, BufferMut::with_capacity(50_000)).await.unwrap();
    assert_eq!(got.as_slice().unwrap()[49_999], 9);
    let region = a.expose_mut(BufferMut::zeroed(100_000), std::time::Duration::from_secs(5)).unwrap();
    b.put(&region.remote(), 10, Buffer::from(vec![5u8; 50_000])).await.unwrap();
    let m = region.revoke().await;
    assert_eq!(m.as_slice().unwrap()[10], 5);
    a.close().await.unwrap();
    assert_eq!(b.recv().await.unwrap_err().kind(), ErrorKind::Closed);
    println!("{:?}", a.stats());
}
