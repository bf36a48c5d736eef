//! Sends a tensor to a worker, and receives a reply. Run with: cargo run -p towline-examples --example hello

use towline::{Buffer, Endpoint, Message, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let endpoint = Endpoint::new()?;
    let listener = endpoint.listen(&"towline://127.0.0.1:0".parse()?).await?;
    let address = listener.address().clone();

    // Usually another process; it only needs the address.
    let worker = tokio::spawn(async move {
        let connection = listener.accept().await?;
        let message = connection.recv().await?;
        println!("{} bytes over {}", message.payload_len(), connection.path().chosen());
        connection.deliver(Message::new("thanks")).await
    });

    let connection = endpoint.connect(&address).await?;
    let tensor = Buffer::from(vec![0; 1024 * 1024 * 4]);
    connection.deliver(Message::new("tensor 1024x1024 f32").with_frame(tensor)).await?;
    println!("the worker answered {:?}", connection.recv().await?.header());
    worker.await.expect("the worker does not panic")
}
