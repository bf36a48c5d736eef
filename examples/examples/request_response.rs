//! Requests and responses: many at a time over one connection, each answered as soon as it is done.
//!
//! ```text
//! cargo run -p towline-examples --example request_response                                # both ends in this process
//! cargo run -p towline-examples --example request_response -- serve towline://127.0.0.1:7100    # or in two: the server,
//! cargo run -p towline-examples --example request_response -- ask towline://127.0.0.1:7100      # and a client
//! ```
//!
//! A header holds the number of the request and a command; data travels in frames. A response repeats the
//! number, so that responses may overtake each other. The server receives no further request while `BUSY_MAX`
//! are in progress.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore, oneshot};
use towline::{Connection, Endpoint, Error, ErrorKind, Listener, Message, Result};

const BUSY_MAX: usize = 16;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let endpoint = Endpoint::new()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", address] => serve(endpoint.listen(&address.parse()?).await?).await,
        ["ask", address] => ask(endpoint.connect(&address.parse()?).await?).await,
        [] => {
            let listener = endpoint.listen(&"towline://127.0.0.1:0".parse()?).await?;
            let address = listener.address().clone();
            tokio::spawn(serve(listener));
            ask(endpoint.connect(&address).await?).await
        }
        _ => Err(Error::new(ErrorKind::Invalid, "usage: request_response [serve ADDRESS | ask ADDRESS]")),
    }
}

async fn serve(listener: Listener) -> Result<()> {
    println!("listening at {}", listener.address());
    loop {
        let connection = listener.accept().await?;
        tokio::spawn(async move {
            let busy = Arc::new(Semaphore::new(BUSY_MAX));
            while let Ok(slot) = busy.clone().acquire_owned().await
                && let Ok(request) = connection.recv().await
            {
                let connection = connection.clone();
                tokio::spawn(async move {
                    // A client that is gone needs no response.
                    let _ = connection.send(answer(&request).await).await;
                    drop(slot);
                });
            }
        });
    }
}

async fn answer(request: &Message) -> Message {
    let (number, word) = parse(request);
    let numbers = request.frames().iter().filter_map(|frame| frame.as_slice()).flatten();
    match word {
        "sum" => Message::new(format!("{number} {}", numbers.map(|n| u64::from(*n)).sum::<u64>())),
        "slow" => {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Message::new(format!("{number} done"))
        }
        _ => Message::new(format!("{number} error: no such request")),
    }
}

/// The number and the command of a header.
fn parse(message: &Message) -> (u64, &str) {
    let (number, word) =
        str::from_utf8(message.header()).ok().and_then(|header| header.split_once(' ')).unwrap_or_default();
    (number.parse().unwrap_or_default(), word)
}

struct Client {
    connection: Connection,
    asked: AtomicU64,
    waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Message>>>>,
}

impl Client {
    fn new(connection: Connection) -> Self {
        let this = Self { connection, asked: AtomicU64::new(0), waiting: Arc::default() };
        let (connection, waiting) = (this.connection.clone(), this.waiting.clone());
        tokio::spawn(async move {
            while let Ok(answer) = connection.recv().await {
                let waiter = waiting.lock().await.remove(&parse(&answer).0);
                // The caller may have stopped waiting.
                let _ = waiter.map(|waiter| waiter.send(answer));
            }
            // Requests in progress fail now, and later ones when they are sent.
            waiting.lock().await.clear();
        });
        this
    }

    async fn request(&self, word: &str, data: Vec<u8>) -> Result<String> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().await.insert(number, answer);
        self.connection.send(Message::new(format!("{number} {word}")).with_frame(data)).await?;
        match answered.await {
            Ok(answer) => Ok(parse(&answer).1.to_owned()),
            Err(_) => Err(Error::new(ErrorKind::Closed, "the connection ended before the answer came")),
        }
    }
}

async fn ask(connection: Connection) -> Result<()> {
    let client = Client::new(connection);
    let asked = async |word, data| {
        let answer = client.request(word, data).await?;
        println!("{word}: {answer}");
        Result::<_>::Ok(())
    };
    tokio::try_join!(asked("slow", vec![]), asked("sum", vec![200; 1000]), asked("what", vec![]))?;
    client.connection.close().await
}
