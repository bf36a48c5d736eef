//! Sends a tensor to a worker, and receives a reply. Run with: cargo run -p towline-examples --example hello

use towline::{Buffer, Endpoint, Message, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let endpoint = Endpoint::new()?;
    let listener = endpoint.listen(&"towline://127.0.0.1:0".parse()?).await?;
    let address = listener.address().clone();

    // Another process would do the same, given the address.
    let worker = tokio::spawn(async move {
        let connection = listener.accept().await?;
        let message = connection.recv().await?;
        let (len, header) = (message.payload_len(), message.header());
        println!("{len} bytes came over {}: {header:?}", connection.path().chosen());
        connection.deliver(Message::new("thanks")).await
    });

    let connection = endpoint.connect(&address).await?;
    let tensor = Buffer::from(vec![0; 1024 * 1024 * 4]);
    connection.deliver(Message::new("tensor 1024x1024 f32").with_frame(tensor)).await?;
    println!("the worker says {:?}", connection.recv().await?.header());
    worker.await.expect("the worker does not panic")
}
