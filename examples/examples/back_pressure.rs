//! Back pressure: a producer that is faster than its consumer waits for it, and the memory in flight is
//! bounded.
//!
//! ```text
//! cargo run -p towline-examples --example back_pressure                                   # both ends in this process
//! cargo run -p towline-examples --example back_pressure -- consume towline://127.0.0.1:7100     # or in two: the consumer,
//! cargo run -p towline-examples --example back_pressure -- produce towline://127.0.0.1:7100     # and the producer
//! ```
//!
//! The producer waits in two places. `Arena::take_within` waits for room: a block that a peer of this host
//! reads in place returns to the arena when the peer drops it. `send` waits for the receiver where blocks are
//! copied, as over `tcp`.

use std::time::{Duration, Instant};

use towline::{Arena, Connection, Endpoint, Error, ErrorKind, Message, Result};

const BLOCKS: u32 = 64;
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that the producer holds in memory at a time.
const IN_FLIGHT_MAX: usize = 4;
/// The consumer's time for a block.
const WORK: Duration = Duration::from_millis(5);
/// How long the producer waits for a stalled consumer.
const WAIT_MAX: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Processes of one user that trust each other read blocks in place.
    let endpoint = Endpoint::builder().trust_user(true).build()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["consume", address] => {
            let listener = endpoint.listen(&address.parse()?).await?;
            println!("listening at {}", listener.address());
            consume(listener.accept().await?).await
        }
        ["produce", address] => produce(endpoint.connect(&address.parse()?).await?).await,
        [] => {
            let listener = endpoint.listen(&"towline://127.0.0.1:0".parse()?).await?;
            let producer = endpoint.connect(listener.address()).await?;
            tokio::try_join!(consume(listener.accept().await?), produce(producer)).map(|_| ())
        }
        _ => Err(Error::new(ErrorKind::Invalid, "usage: back_pressure [consume ADDRESS | produce ADDRESS]")),
    }
}

async fn produce(connection: Connection) -> Result<()> {
    let arena = Arena::new(IN_FLIGHT_MAX * BLOCK_BYTES)?;
    let begin = Instant::now();
    let mut waited = Duration::ZERO;
    for number in 0..BLOCKS {
        let begin = Instant::now();
        let mut block = arena.take_within(BLOCK_BYTES, WAIT_MAX).await?;
        waited += begin.elapsed();

        block.resize(BLOCK_BYTES, number as u8)?;

        let begin = Instant::now();
        connection.send(Message::new(number.to_string()).with_frame(block)).await?;
        waited += begin.elapsed();
    }
    // Returns when the consumer has received this message, and hence all before it.
    connection.deliver(Message::new("end")).await?;
    let (waited, total) = (waited.as_millis(), begin.elapsed().as_millis());
    let path = connection.path().chosen();
    println!("produced {BLOCKS} blocks in {total} ms over {path}, and waited {waited} ms for the consumer");
    Ok(())
}

async fn consume(connection: Connection) -> Result<()> {
    for expected in 0..BLOCKS {
        let message = connection.recv().await?;
        tokio::time::sleep(WORK).await;
        let bytes = message.frames().first().and_then(|block| block.as_slice()).unwrap_or_default();
        if message.header() != expected.to_string().as_str() || bytes != vec![expected as u8; BLOCK_BYTES] {
            return Err(Error::new(ErrorKind::Corrupt, format!("this is not block {expected}")));
        }
        // The message is dropped here, and its memory returns to the producer.
    }
    connection.recv().await?;
    println!("consumed {BLOCKS} blocks");
    connection.close().await
}
