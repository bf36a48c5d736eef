//! One-sided access: a peer reads parts of a table and writes a result, without the owner's application.
//!
//! ```text
//! cargo run -p towline-examples --example one_sided                                       # both ends in this process
//! cargo run -p towline-examples --example one_sided -- own towline://127.0.0.1:7100       # or in two: first the owner,
//! cargo run -p towline-examples --example one_sided -- read towline://127.0.0.1:7100      # then the reader
//! ```
//!
//! `expose` and `expose_mut` return capabilities of 32 bytes, which are sent in a message. They are valid for
//! this one connection, until their lifetime has passed or the owner revokes them.

use std::time::Duration;

use towline::{Arena, BufferMut, Connection, Endpoint, Error, ErrorKind, Message, RemoteRegion, Result};

const ROWS: u64 = 1000;
const ROW_BYTES: usize = 64;
const LIFETIME: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let endpoint = Endpoint::new()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["own", address] => {
            let listener = endpoint.listen(&address.parse()?).await?;
            println!("listening at {}", listener.address());
            own(listener.accept().await?).await
        }
        ["read", address] => read(endpoint.connect(&address.parse()?).await?).await,
        [] => {
            let listener = endpoint.listen(&"towline://127.0.0.1:0".parse()?).await?;
            let reader = endpoint.connect(listener.address()).await?;
            tokio::try_join!(own(listener.accept().await?), read(reader)).map(|_| ())
        }
        _ => Err(invalid("usage: one_sided [own ADDRESS | read ADDRESS]")),
    }
}

async fn own(connection: Connection) -> Result<()> {
    // The table is built in its final memory, which a peer of this host can reach.
    let mut table = Arena::new(1 << 20)?.take_zeroed(ROWS as usize * ROW_BYTES)?;
    let rows = table.as_mut_slice().expect("the CPU can write an arena").chunks_exact_mut(ROW_BYTES);
    for (number, row) in (0_u64..).zip(rows) {
        row[..8].copy_from_slice(&(number * number).to_le_bytes());
    }
    let table = connection.expose(table.freeze(), LIFETIME)?;
    let result = connection.expose_mut(BufferMut::zeroed(8), LIFETIME)?;
    let capabilities = [table.remote().to_bytes(), result.remote().to_bytes()].concat();
    connection.send(Message::new(capabilities)).await?;

    // The application may do anything else here. The reader sends a message when it is done.
    connection.recv().await?;
    table.revoke().await;
    println!("the reader wrote {}", number_in(&result.revoke().await)?);
    connection.close().await
}

async fn read(connection: Connection) -> Result<()> {
    let message = connection.recv().await?;
    let (table, result) = message.header().split_at_checked(32).ok_or_else(|| invalid("no capabilities"))?;
    let (table, result) = (RemoteRegion::from_bytes(table)?, RemoteRegion::from_bytes(result)?);
    let mut sum = 0;
    for row in [3, 4, ROWS - 1] {
        // Reads as much as the buffer has room for, from that offset.
        let number = BufferMut::with_capacity(8);
        sum += number_in(&connection.get(&table, row * ROW_BYTES as u64, number).await?)?;
    }
    connection.put(&result, 0, sum.to_le_bytes().to_vec().into()).await?;
    println!("read 3 rows of {} bytes, and wrote {sum}", table.len());
    connection.deliver(Message::new("done")).await
}

fn number_in(buffer: &BufferMut) -> Result<u64> {
    let mut number = [0; 8];
    buffer.copy_to(&mut number)?;
    Ok(u64::from_le_bytes(number))
}

fn invalid(why: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, why)
}
